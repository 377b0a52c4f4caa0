-- Functions that are prepended to every script.
local P = KEYS[1]
local function int(number) return string.format('%.0f', number) end
local function last(stream)
  if redis.call('EXISTS', stream) == 0 then return 0 end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return tonumber(string.match(info[i + 1], '^%d+')) end
  end
end
local function entry(stream, at)
  local found = redis.call('XRANGE', stream, at .. '-0', at .. '-0')[1]
  return found and found[2]
end
local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end
local function trimmed(stream)
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if oldest then return tonumber(string.match(oldest[1], '^%d+')) - 1 end
  return last(stream)
end
local function epoch_of(model, spec)
  return redis.call('HGET', P .. ':head:' .. model, 'epoch:' .. spec)
end
local function proof(place, words)
  return string.sub(redis.sha1hex(place .. '\n' .. table.concat(words, '\n')), 1, 8)
end
local function is_good(number, id, fields)
  if fields[#fields - 1] ~= 'sum' then return field(fields, 'ran') == nil end
  local words = {unpack(fields, 1, #fields - 2)}
  return fields[#fields] == proof('row ' .. number .. ' ' .. string.match(id, '^%d+'), words)
end
local function running(model)
  local found = redis.call('GET', P .. ':running:' .. model)
  if not found then return 0 end
  local ms, sum = string.match(found, '^(%d+) (%x+)$')
  return ms and sum == proof('running ' .. model, {ms}) and tonumber(ms) or nil
end
local function prove_partition(number)
  local partition = P .. ':partition:' .. number
  local of = redis.call('HMGET', partition, 'model', 'replica', 'spec', 'at', 'sealed')
  redis.call('HSET', partition, 'sum', proof('partition ' .. number,
    {of[1], of[2], of[3], of[4], of[5] or ''}))
end
local function head_is_good(model, spec)
  local of = redis.call('HMGET', P .. ':head:' .. model, 'epoch:' .. spec, 'snapshot:' .. spec,
    'sum:' .. spec)
  return not of[3] or
    of[3] == proof('head ' .. model .. ' ' .. spec, {of[1] or '', of[2] or ''})
end
local function prove_head(model, spec)
  local head = P .. ':head:' .. model
  local of = redis.call('HMGET', head, 'epoch:' .. spec, 'snapshot:' .. spec)
  redis.call('HSET', head, 'sum:' .. spec,
    proof('head ' .. model .. ' ' .. spec, {of[1], of[2] or ''}))
end
-- Whether the index of ids does not reach the newest row: somebody has deleted it or put back an older one.
local function lacks_ids(model)
  local newest = redis.call('HGET', P .. ':ids:' .. model, '')
  if newest then return tonumber(newest) < last(P .. ':order:' .. model) end
  for _, one in ipairs(redis.call('LRANGE', P .. ':partitions:' .. model, 0, -1)) do
    if redis.call('XLEN', P .. ':rows:' .. one) > 0 then return true end
  end
  return false
end
