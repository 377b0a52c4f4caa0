-- ARGV: model, after, before, how many.  Keys and halves taken between the two, the oldest first,
-- and when the last that was looked at was taken.
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
      found[#found + 1] = {key, half[1], half[2], half[3], half[4], half[5]}
    end
  end
end
return {found, keys[#keys] or ''}
