-- Arguments: model, seq after which to begin, greatest number of rows.
local newest, found = redis.call('GET', P .. ':seq') or '0', {}
local page = redis.call(
  'XRANGE', P .. ':order:' .. ARGV[1], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])
for _, place in ipairs(page) do
  local where, offset = string.match(place[2][2], '^(%d+):(%d+)$')
  local stored = entry(P .. ':rows:' .. where, offset)
  if stored and field(stored, 'seq') == string.match(place[1], '^%d+') then
    found[#found + 1] = {where, offset, stored}
  end
end
if #page == tonumber(ARGV[3]) then newest = string.match(page[#page][1], '^%d+') end
return {newest, found, #page, redis.call('GET', P .. ':trimmed:' .. ARGV[1]) or '0'}
