-- Arguments: model, spec, epoch, before, greatest number of rows, ahead, running time; then for each
-- partition its number and the last offset that may be removed.  Ids are removed before entries: a key
-- that leads to no entry could never be written again.
local model, before, left = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local ahead, ran = tonumber(ARGV[6]), tonumber(ARGV[7])
local function is_old(fields)
  local at = tonumber(field(fields, 'at'))
  return (at < before or at > ahead) and tonumber(field(fields, 'ran') or '0') < ran
end
local epoch = epoch_of(model, ARGV[2])
if epoch ~= ARGV[3] then return {'lost', epoch or '0'} end
local newest = redis.call('ZRANGE', P .. ':lineages:' .. model, -1, -1)[1]
if newest ~= ARGV[2] then return {'ok', '0'} end
local removed, newest = 0, tonumber(redis.call('GET', P .. ':trimmed:' .. model) or '0')
for i = 8, #ARGV, 2 do
  local number, rows = ARGV[i], P .. ':rows:' .. ARGV[i]
  if left > removed and redis.call('HGET', P .. ':partition:' .. number, 'model') == model then
    local upto, passed = nil, {}
    for _, row in ipairs(
        redis.call('XRANGE', rows, '-', ARGV[i + 1] .. '-0', 'COUNT', int(left - removed))) do
      local good = is_good(number, row[1], row[2])
      if good and not is_old(row[2]) then break end
      passed[#passed + 1] = row
      if good then  -- a damaged row's time is not trusted: a later row decides
        for _, gone in ipairs(passed) do
          upto = tonumber(string.match(gone[1], '^%d+'))
          local key, seq = field(gone[2], 'key') or '', field(gone[2], 'seq') or ''
          redis.call('HDEL', P .. ':ids:' .. model, key)
          for i = 0, 2 do redis.call('HDEL', P .. ':claims:' .. number, int(upto + i * 2^40)) end
          if string.match(seq, '^%d+$') then
            redis.call('XDEL', P .. ':order:' .. model, seq .. '-0')
          end
        end
        newest, removed = math.max(newest, tonumber(field(row[2], 'seq'))), removed + #passed
        passed = {}
      end
    end
    if upto then redis.call('XTRIM', rows, 'MINID', int(upto + 1) .. '-0') end
  end
end
if removed > 0 then redis.call('SET', P .. ':trimmed:' .. model, int(newest)) end
return {'ok', int(removed)}
