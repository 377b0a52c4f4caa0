-- ARGV: number, offset after which, most rows.  Each row with where its id and its seq lead to.
local model, found = redis.call('HGET', P .. ':partition:' .. ARGV[1], 'model') or '', {}
for _, row in ipairs(redis.call(
    'XRANGE', P .. ':rows:' .. ARGV[1], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])) do
  local key, seq = field(row[2], 'key') or '', field(row[2], 'seq') or ''
  local order = string.match(seq, '^%d+$') and entry(P .. ':order:' .. model, seq) or {}
  found[#found + 1] = {row[1], row[2], redis.call('HGET', P .. ':ids:' .. model, key) or '',
    field(order, 'at') or ''}
end
return found
