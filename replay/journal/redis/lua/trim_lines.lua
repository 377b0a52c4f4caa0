-- Arguments: number, text, checksum.  The anchor is written before the lines that it replaces are removed.
local newest = newest_line()
if tonumber(ARGV[1]) > newest then return {'taken', int(newest)} end
if ARGV[1] == redis.call('HGET', anchor, 'number') then return {'taken', int(newest)} end
redis.call('HSET', anchor, 'number', ARGV[1], 'text', ARGV[2], 'sum', ARGV[3])
redis.call('XTRIM', lines, 'MINID', int(tonumber(ARGV[1]) + 1) .. '-0')
return {'ok', ARGV[1]}
