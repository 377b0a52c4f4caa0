-- Arguments: model, before, greatest number of halves, ahead, running time.
local waiting = P .. ':waiting:' .. ARGV[1]
local halves, most, ran = P .. ':halves:' .. ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[5])
local function written(key)
  local packed = redis.call('HGET', halves, key)
  local read, half = pcall(cmsgpack.unpack, packed or '')
  return read and half and tonumber(half[6]) or 0
end
local removed = 0
for _, range in ipairs({{'-inf', '(' .. ARGV[2]}, {'(' .. ARGV[4], '+inf'}}) do
  local keys = redis.call(
    'ZRANGEBYSCORE', waiting, range[1], range[2], 'LIMIT', 0, int(most - removed))
  for _, key in ipairs(keys) do
    if written(key) < ran then
      redis.call('HDEL', halves, key)
      redis.call('ZREM', waiting, key)
      removed = removed + 1
    end
  end
end
return int(removed)
