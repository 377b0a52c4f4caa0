-- Arguments: model, kind, key, payload, fence (spec and epoch), line (number and text); '' for none.
if ARGV[6] ~= '' then
  local epoch = epoch_of(ARGV[1], ARGV[5])
  if epoch ~= ARGV[6] then return {'lost', epoch or '0'} end
end
local controls, decided = P .. ':controls:' .. ARGV[1], P .. ':decided:' .. ARGV[1]
local seq, won = redis.call('HGET', decided, ARGV[3]), '0'
if not seq and tonumber(redis.call('HGET', decided, '') or '0') < last(controls) then
  local after = '-'  -- somebody has deleted the index of keys or put back an older one
  while after do
    local page = redis.call('XRANGE', controls, after, '+', 'COUNT', 1000)
    for _, row in ipairs(page) do
      local key = field(row[2], 'key')
      if key then redis.call('HSETNX', decided, key, string.match(row[1], '^%d+')) end
    end
    after = page[1] and '(' .. page[#page][1]
  end
  redis.call('HSET', decided, '', int(last(controls)))
  seq = redis.call('HGET', decided, ARGV[3])
end
if not seq then
  if ARGV[7] ~= '' then
    local newest = newest_line()
    if tonumber(ARGV[7]) ~= newest + 1 then return {'taken', int(newest)} end
    write_line(ARGV[7], ARGV[8])
  end
  seq, won = int(last(controls) + 1), '1'
  local fields = {'kind', ARGV[2], 'key', ARGV[3], 'payload', ARGV[4]}
  fields[8] = proof('control ' .. ARGV[1] .. ' ' .. seq, fields)
  fields[7] = 'sum'
  redis.call('XADD', controls, seq .. '-0', unpack(fields))
  redis.call('HSET', decided, ARGV[3], seq, '', seq)
end
local row = entry(controls, seq)
if not row then return redis.error_reply('LOST control row ' .. seq .. ' of the model') end
return {won, seq, row}
