-- ARGV: model, number, offset after which, most rows.  An id that leads nowhere leads to its row
-- from now on; one that leads to another row stays as it is.  How many, and the last offset ('' behind
-- the end).
local restored, at = 0, ''
for _, row in ipairs(redis.call(
    'XRANGE', P .. ':rows:' .. ARGV[2], '(' .. ARGV[3] .. '-0', '+', 'COUNT', ARGV[4])) do
  at = string.match(row[1], '^%d+')
  local key = is_good(ARGV[2], row[1], row[2]) and field(row[2], 'key')
  if key then
    restored = restored +
      redis.call('HSETNX', P .. ':ids:' .. ARGV[1], key, ARGV[2] .. ':' .. at)
  end
end
return {restored, at}
