-- Arguments: model, key.
local place = redis.call('HGET', P .. ':ids:' .. ARGV[1], ARGV[2])
if not place then return {} end
local where, offset = string.match(place, '^(%d+):(%d+)$')
local stored = entry(P .. ':rows:' .. where, offset)
return stored and {where, offset, stored} or {}
