-- Arguments: model, key.
if lacks_ids(ARGV[1]) then return {'forgotten', ARGV[1]} end
local place = redis.call('HGET', P .. ':ids:' .. ARGV[1], ARGV[2])
if not place then return {} end
local where, offset = string.match(place, '^(%d+):(%d+)$')
local stored = entry(P .. ':rows:' .. where, offset)
return stored and {where, offset, stored} or {}
