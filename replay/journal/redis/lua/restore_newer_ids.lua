-- Arguments: model, seq after which to begin, greatest number of rows.  Adds missing ids of newer rows to the
-- index.  Returns the number of ids added, and the last seq ('' after the end).
local added, seq = 0, ''
for _, one in ipairs(redis.call(
    'XRANGE', P .. ':order:' .. ARGV[1], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])) do
  local number, offset = string.match(one[2][2], '^(%d+):(%d+)$')
  local row = entry(P .. ':rows:' .. number, offset)
  seq = string.match(one[1], '^%d+')
  if row then added = added + restored(ARGV[1], number, offset .. '-0', row) end
end
return {added, seq}
