-- Arguments: model, replica, spec, at, 24 random bits.  A counter makes the numbers grow and distinct.
-- The random bits prevent that a server that lost its counter assigns a number again: the old
-- partition's clock would make the new one's rows look like repeats.  The first 2^29 numbers are below
-- 2^53, so that they are exact in programs that only have doubles.
local number = int(redis.call('INCR', P .. ':partitions') * 16777216 + tonumber(ARGV[5]))
redis.call('HSET', P .. ':partition:' .. number,
  'model', ARGV[1], 'replica', ARGV[2], 'spec', ARGV[3], 'at', ARGV[4])
prove_partition(number)
redis.call('RPUSH', P .. ':partitions:' .. ARGV[1], number)
return number
