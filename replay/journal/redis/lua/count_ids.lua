-- Arguments: model.  Returns the number of ids in the index, and the number of rows.
local rows = 0
for _, number in ipairs(redis.call('LRANGE', P .. ':partitions:' .. ARGV[1], 0, -1)) do
  rows = rows + redis.call('XLEN', P .. ':rows:' .. number)
end
return {redis.call('HLEN', P .. ':ids:' .. ARGV[1]), rows}
