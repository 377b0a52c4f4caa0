-- Functions that are prepended to the scripts that restore an index of ids.
local function restored(model, number, id, row)
  local ids, at = P .. ':ids:' .. model, string.match(id, '^%d+')
  local key = is_good(number, id, row) and field(row, 'key')
  if not key then return 0 end
  local where, offset = string.match(redis.call('HGET', ids, key) or '', '^(%d+):(%d+)$')
  if where and entry(P .. ':rows:' .. where, offset) then return 0 end
  redis.call('HSET', ids, key, number .. ':' .. at)
  return where and 0 or 1
end
