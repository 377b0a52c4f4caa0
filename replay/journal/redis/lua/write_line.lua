-- Arguments: number, text.
local newest = newest_line()
if tonumber(ARGV[1]) ~= newest + 1 then return {'taken', int(newest)} end
write_line(ARGV[1], ARGV[2])
return {'ok', ARGV[1]}
