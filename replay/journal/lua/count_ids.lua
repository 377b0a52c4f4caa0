-- ARGV: model.  How many ids lead to its rows, and how many rows there are.
local rows = 0
for _, number in ipairs(redis.call('LRANGE', P .. ':partitions:' .. ARGV[1], 0, -1)) do
  rows = rows + redis.call('XLEN', P .. ':rows:' .. number)
end
return {redis.call('HLEN', P .. ':ids:' .. ARGV[1]), rows}
