-- Arguments: model, after, before, greatest number of halves.  Returns keys and predictions among the
-- halves received between the two times, oldest first, the time of the last half examined, and the
-- running time now; each prediction ends with the one at which it was written.
local found, halves = {}, P .. ':halves:' .. ARGV[1]
local keys = redis.call('ZRANGEBYSCORE', P .. ':waiting:' .. ARGV[1], '(' .. ARGV[2],
  '(' .. ARGV[3], 'WITHSCORES', 'LIMIT', 0, ARGV[4])
for i = 1, #keys, 2 do
  local key = keys[i]
  local read, half = pcall(cmsgpack.unpack, redis.call('HGET', halves, key) or '')
  if read and type(half) == 'table' then
    local sum = table.remove(half, 7)
    if half[1] == 'prediction' and
        (not sum or sum == proof('half ' .. ARGV[1] .. ' ' .. key, half)) then
      found[#found + 1] = {key, half[1], half[2], half[3], half[4], half[5], half[6] or ''}
    end
  end
end
return {found, keys[#keys] or '', int(running(ARGV[1]) or 0)}
