-- ARGV: model, replica, spec, at, 24 random bits.  The count makes numbers grow and keeps them
-- apart; the random bits keep a number from being given again by a server that lost its count,
-- where the clock of the old partition would call the new one's rows repeats.  Below 2^53 for the
-- first 2^29 partitions, so that each number is exact also where only doubles are known.
local number = int(redis.call('INCR', P .. ':partitions') * 16777216 + tonumber(ARGV[5]))
redis.call('HSET', P .. ':partition:' .. number,
  'model', ARGV[1], 'replica', ARGV[2], 'spec', ARGV[3], 'at', ARGV[4])
prove_partition(number)
redis.call('RPUSH', P .. ':partitions:' .. ARGV[1], number)
return number
