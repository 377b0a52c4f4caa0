-- Arguments: partition number, offset after which to begin, greatest number of rows.  Returns each row
-- with the places that the indexes of ids and of seqs have for it.
local model, found = redis.call('HGET', P .. ':partition:' .. ARGV[1], 'model') or '', {}
for _, row in ipairs(redis.call(
    'XRANGE', P .. ':rows:' .. ARGV[1], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])) do
  local key, seq = field(row[2], 'key') or '', field(row[2], 'seq') or ''
  local order = string.match(seq, '^%d+$') and entry(P .. ':order:' .. model, seq) or {}
  found[#found + 1] = {row[1], row[2], redis.call('HGET', P .. ':ids:' .. model, key) or '',
    field(order, 'at') or ''}
end
return found
