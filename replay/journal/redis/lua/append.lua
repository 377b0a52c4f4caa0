-- Arguments: partition number, last offset that the writer knows, '1' if new rows must be refused,
-- greatest number of halves for the model, newest epoch that the writer has seen; then for each row:
-- key, event_id, source, verdict, factor, payload, at, half ('' for a whole row), payload of the half
-- that it replaces ('': any or none), the last control row known and the kinds of which there must be
-- no newer one, and a key for which there must be no row ('': no such condition).
local number, known, held, most = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local of = redis.call('HMGET', P .. ':partition:' .. number,
  'model', 'sealed', 'replica', 'spec', 'at', 'sum')
local rows = P .. ':rows:' .. number
local stop = last(rows)
if not of[1] and not of[3] then return {'unknown'} end
if of[6] and of[6] ~= proof('partition ' .. number,
    {of[1] or '', of[3] or '', of[4] or '', of[5] or '', of[2] or ''}) then return {'damaged'} end
if of[2] then return {'sealed', int(stop)} end
if stop < known then return {'behind', number, int(stop), int(known)} end
local newest = redis.call('HGET', P .. ':head:' .. of[1], 'newest') or '0'
if tonumber(newest) < tonumber(ARGV[5]) then return {'older', of[1], newest} end
local ids, halves = P .. ':ids:' .. of[1], P .. ':halves:' .. of[1]
if lacks_ids(of[1]) then return {'forgotten', of[1]} end
local waiting = P .. ':waiting:' .. of[1]
local count = redis.call('HLEN', halves)
local any, ran = count > 0, int(running(of[1]) or 0)
local outcomes, first, fresh, kept, touched = {}, {}, {}, {}, {}

local function half_of(key)
  if kept[key] == nil then
    local packed = any and redis.call('HGET', halves, key)
    local read, found = true, false
    if packed then read, found = pcall(cmsgpack.unpack, packed) end
    if type(found) ~= 'table' then read = read and found == false end
    if read and found and #found > 5 then
      local sum = table.remove(found, 7)
      read = sum == proof('half ' .. of[1] .. ' ' .. key, found)
    end
    if read then kept[key] = found else kept[key] = 'damaged' end
  end
  return kept[key]
end
local function holds(since, absent)
  local there = absent ~= '' and (first[absent] or redis.call('HEXISTS', ids, absent) == 1)
  if there or since == '' then return not there end
  local from = int(tonumber(string.match(since, '^%d+')) + 1) .. '-0'
  for _, control in ipairs(redis.call('XRANGE', P .. ':controls:' .. of[1], from, '+')) do
    if string.find(since, ' ' .. field(control[2], 'kind') .. ' ', 1, true) then return false end
  end
  return true
end
local function take(i, n)
  local key, payload, half, over = ARGV[i], ARGV[i + 5], ARGV[i + 7], ARGV[i + 8]
  if not holds(ARGV[i + 9], ARGV[i + 10]) then return {'gone'} end
  local had = half_of(key)
  if had == 'damaged' then return {'damaged'} end
  if not had and over ~= '' then
    if payload == '' then return {'half', ARGV[i + 6]} end
    return {'gone'}
  end
  if had and (half ~= '' or over ~= '') and over ~= had[4] then
    if had[1] == half and had[4] == payload then return {'half', had[5]} end
    return {'met', had[1], had[2], had[3], had[4], had[5]}
  end
  if half ~= '' and not had and count >= most then return {'half', ''} end
  if had then count = count - 1 end
  if touched[key] == nil then touched[key] = had end
  if half == '' then
    kept[key] = false
    fresh[#fresh + 1] = {n = n, key = key, fields = {'key', key, 'event_id', ARGV[i + 1],
      'source', ARGV[i + 2], 'verdict', ARGV[i + 3], 'factor', ARGV[i + 4], 'payload', payload,
      'at', ARGV[i + 6], 'half', '', 'ran', ran}}
    first[key] = n
    return {'written'}
  end
  kept[key] = payload ~= '' and {half, ARGV[i + 1], ARGV[i + 2], payload, ARGV[i + 6], ran}
  if payload ~= '' then count = count + 1 end
  return {'half', ARGV[i + 6]}
end

for i = 6, #ARGV, 11 do
  local key, n, half = ARGV[i], #outcomes + 1, ARGV[i + 7]
  local place = not first[key] and redis.call('HGET', ids, key)
  if first[key] then
    outcomes[n] = {'twice', first[key]}
  elseif place then
    local where, offset = string.match(place, '^(%d+):(%d+)$')
    local stored = entry(P .. ':rows:' .. where, offset)
    if not stored then return {'behind', where, int(last(P .. ':rows:' .. where)), offset} end
    local own = half == '' and where == number and tonumber(offset) > known
    if field(stored, 'key') == key then
      outcomes[n] = {own and 'own' or 'other', where, offset, stored}
    else
      outcomes[n] = {'damaged', where, offset}
    end
    if half == '' then first[key] = n end
  else
    outcomes[n] = take(i, n)
  end
end
if held and next(touched) ~= nil then return {'held'} end
for _, new in ipairs(fresh) do
  stop = stop + 1
  local seq = int(redis.call('INCR', P .. ':seq'))
  redis.call('XADD', P .. ':order:' .. of[1], seq .. '-0', 'at', number .. ':' .. int(stop))
  table.insert(new.fields, 1, 'seq')
  table.insert(new.fields, 2, seq)
  local sum = proof('row ' .. number .. ' ' .. int(stop), new.fields)
  new.fields[#new.fields + 1], new.fields[#new.fields + 2] = 'sum', sum
  redis.call('XADD', rows, int(stop) .. '-0', unpack(new.fields))
  redis.call('HSET', ids, new.key, number .. ':' .. int(stop), '', seq)
  outcomes[new.n] = {'written', int(stop), seq}
end
for key, had in pairs(touched) do
  local half = kept[key]
  if half then
    redis.call('ZADD', waiting, half[5], key)
    half[7] = proof('half ' .. of[1] .. ' ' .. key, half)
    redis.call('HSET', halves, key, cmsgpack.pack(half))
  elseif had then
    redis.call('HDEL', halves, key)
    redis.call('ZREM', waiting, key)
  end
end
return {'ok', int(stop), newest, outcomes}
