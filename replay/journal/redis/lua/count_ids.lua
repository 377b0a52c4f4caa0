-- Arguments: model.  Returns the number of ids in the index, of halves and of rows, the seq of the newest row,
-- and 1 if the index does not reach it.
local rows, ids = 0, P .. ':ids:' .. ARGV[1]
for _, number in ipairs(redis.call('LRANGE', P .. ':partitions:' .. ARGV[1], 0, -1)) do
  rows = rows + redis.call('XLEN', P .. ':rows:' .. number)
end
return {redis.call('HLEN', ids) - redis.call('HEXISTS', ids, ''),
  redis.call('HLEN', P .. ':halves:' .. ARGV[1]), rows,
  last(P .. ':order:' .. ARGV[1]), lacks_ids(ARGV[1]) and 1 or 0}
