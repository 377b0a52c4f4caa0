-- ARGV: layout of the caller.  Keeps the newest one, so that older versions refuse what they
-- could not read; answers what is there then.
local found = tonumber(redis.call('GET', P .. ':format') or '0')
if found >= tonumber(ARGV[1]) then return found end
redis.call('SET', P .. ':format', ARGV[1])
return tonumber(ARGV[1])
