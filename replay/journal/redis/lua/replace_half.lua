-- Arguments: model, key, payload of the stored half; then half, event_id, source, payload and at of the
-- new one (payload '': only remove the stored half).
local halves, waiting, key = P .. ':halves:' .. ARGV[1], P .. ':waiting:' .. ARGV[1], ARGV[2]
local packed = redis.call('HGET', halves, key)
local read, half = pcall(cmsgpack.unpack, packed or '')
if not packed or not read or type(half) ~= 'table' or half[4] ~= ARGV[3] then return 0 end
if ARGV[7] == '' then
  redis.call('HDEL', halves, key)
  redis.call('ZREM', waiting, key)
  return 1
end
local new = {ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], half[6]}
new[7] = proof('half ' .. ARGV[1] .. ' ' .. key, new)
redis.call('ZADD', waiting, ARGV[8], key)
redis.call('HSET', halves, key, cmsgpack.pack(new))
return 1
