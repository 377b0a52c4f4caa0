-- Arguments: model.  Returns the number of ids in the index, of halves and of rows, the seq that the index
-- reaches (-1: unknown), and that of the newest row.
local rows, ids = 0, P .. ':ids:' .. ARGV[1]
for _, number in ipairs(redis.call('LRANGE', P .. ':partitions:' .. ARGV[1], 0, -1)) do
  rows = rows + redis.call('XLEN', P .. ':rows:' .. number)
end
return {redis.call('HLEN', ids) - redis.call('HEXISTS', ids, ''),
  redis.call('HLEN', P .. ':halves:' .. ARGV[1]), rows,
  tonumber(redis.call('HGET', ids, '') or '-1'), last(P .. ':order:' .. ARGV[1])}
