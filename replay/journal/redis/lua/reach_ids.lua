-- Arguments: model, seq.  Records that the index of ids contains all rows up to this one.
local ids = P .. ':ids:' .. ARGV[1]
if tonumber(redis.call('HGET', ids, '') or '-1') < tonumber(ARGV[2]) then
  redis.call('HSET', ids, '', ARGV[2])
end
