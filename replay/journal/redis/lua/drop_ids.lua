-- Arguments: model, ids.  Removes those from the index that lead to no row, or to another event's.
for i = 2, #ARGV do
  local place = redis.call('HGET', P .. ':ids:' .. ARGV[1], ARGV[i]) or ''
  local number, offset = string.match(place, '^(%d+):(%d+)$')
  if number then
    local row = entry(P .. ':rows:' .. number, offset)
    local moved = row and is_good(number, offset, row) and field(row, 'key') ~= ARGV[i]
    if not row or moved then redis.call('HDEL', P .. ':ids:' .. ARGV[1], ARGV[i]) end
  end
end
