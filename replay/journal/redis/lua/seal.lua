-- Arguments: partition number.
local partition = P .. ':partition:' .. ARGV[1]
if redis.call('EXISTS', partition) == 0 then return {'unknown'} end
redis.call('HSET', partition, 'sealed', '1')
prove_partition(ARGV[1])
return {'ok', int(last(P .. ':rows:' .. ARGV[1]))}
