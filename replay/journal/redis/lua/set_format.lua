-- Arguments: the caller's layout.  Stores the newest layout, so that older versions refuse what they
-- cannot read, and returns it.
local found = tonumber(redis.call('GET', P .. ':format') or '0')
if found >= tonumber(ARGV[1]) then return found end
redis.call('SET', P .. ':format', ARGV[1])
return tonumber(ARGV[1])
