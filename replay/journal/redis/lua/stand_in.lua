-- Arguments: partition number, offset; then key, event_id, source, verdict, factor, payload and at of the
-- new row.  Entries of a stream cannot be changed, so it is replaced by a copy, which needs no memory at
-- that moment.
local number, at = ARGV[1], ARGV[2]
local rows, spare = P .. ':rows:' .. number, P .. ':spare:' .. number
local stored = entry(rows, at)
if not stored then return 'missing' end
local function sum_of(fields, count)
  return proof('row ' .. number .. ' ' .. at, {unpack(fields, 1, count)})
end
local n = #stored
if stored[n - 1] == 'sum' then
  if stored[n] == sum_of(stored, n - 2) then return 'good' end
elseif field(stored, 'ran') == nil then
  return 'good'
end
local model = redis.call('HGET', P .. ':partition:' .. number, 'model')
local ids, order, here = P .. ':ids:' .. model, P .. ':order:' .. model, number .. ':' .. at
local seq, after = nil, '-'
while not seq do
  local page = redis.call('XRANGE', order, after, '+', 'COUNT', 1000)
  if #page == 0 then break end
  for _, place in ipairs(page) do
    if place[2][2] == here then seq = string.match(place[1], '^%d+') end
  end
  after = '(' .. page[#page][1]
end
local cursor, gone = '0', {}
repeat
  local page = redis.call('HSCAN', ids, cursor, 'COUNT', 1000)
  cursor = page[1]
  for i = 1, #page[2], 2 do
    if page[2][i + 1] == here then gone[#gone + 1] = page[2][i] end
  end
until cursor == '0'
local ran = int(running(model) or 0)
local lacking = lacks_ids(model)
if not seq then
  seq = int(redis.call('INCR', P .. ':seq'))
  redis.call('XADD', order, seq .. '-0', 'at', here)
end
local fields = {'seq', seq, 'key', ARGV[3], 'event_id', ARGV[4], 'source', ARGV[5],
  'verdict', ARGV[6], 'factor', ARGV[7], 'payload', ARGV[8], 'at', ARGV[9], 'half', '', 'ran', ran}
local sum = sum_of(fields, #fields)
fields[#fields + 1], fields[#fields + 2] = 'sum', sum
redis.call('DEL', spare)
after = '-'
while true do
  local page = redis.call('XRANGE', rows, after, '+', 'COUNT', 1000)
  if #page == 0 then break end
  for _, row in ipairs(page) do
    redis.call('XADD', spare, row[1], unpack(row[1] == at .. '-0' and fields or row[2]))
  end
  after = '(' .. page[#page][1]
end
redis.call('XSETID', spare, int(last(rows)) .. '-0')
redis.call('RENAME', spare, rows)
for _, key in ipairs(gone) do redis.call('HDEL', ids, key) end
redis.call('HSET', ids, ARGV[3], here)
if not lacking then redis.call('HSET', ids, '', int(last(order))) end
return 'ok'
