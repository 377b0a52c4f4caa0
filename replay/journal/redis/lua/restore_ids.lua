-- Arguments: model, partition number, offset after which to begin, greatest number of rows.  Adds missing
-- ids to the index; an id that leads to another row is not changed.  Returns the number of ids added, and
-- the last offset ('' after the end).
local added, at = 0, ''
for _, row in ipairs(redis.call(
    'XRANGE', P .. ':rows:' .. ARGV[2], '(' .. ARGV[3] .. '-0', '+', 'COUNT', ARGV[4])) do
  at = string.match(row[1], '^%d+')
  added = added + restored(ARGV[1], ARGV[2], row[1], row[2])
end
return {added, at}
