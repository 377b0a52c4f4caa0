-- Arguments: model, spec, expected epoch.
local head = P .. ':head:' .. ARGV[1]
if not head_is_good(ARGV[1], ARGV[2]) then return {'damaged', '0'} end
local found = redis.call('HMGET', head, 'epoch:' .. ARGV[2], 'newest')
local epoch = tonumber(found[1] or '0')
if epoch ~= tonumber(ARGV[3]) then return {'lost', int(epoch)} end
epoch = epoch + 1
local newest = math.max(epoch, tonumber(found[2] or '0'))
local changes = int(redis.call('INCR', P .. ':changes'))
redis.call('ZADD', P .. ':lineages:' .. ARGV[1], changes, ARGV[2])
redis.call('HSET', head, 'epoch:' .. ARGV[2], int(epoch), 'newest', int(newest))
prove_head(ARGV[1], ARGV[2])
return {'ok', int(epoch)}
