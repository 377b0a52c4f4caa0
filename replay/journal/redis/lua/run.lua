-- Arguments: model, spec, epoch, milliseconds.
local epoch = epoch_of(ARGV[1], ARGV[2])
if epoch ~= ARGV[3] then return {'lost', epoch or '0'} end
local ms = running(ARGV[1])
if not ms then return {'damaged'} end
if redis.call('ZRANGE', P .. ':lineages:' .. ARGV[1], -1, -1)[1] == ARGV[2] then
  ms = ms + tonumber(ARGV[4])
  redis.call('SET', P .. ':running:' .. ARGV[1],
    int(ms) .. ' ' .. proof('running ' .. ARGV[1], {int(ms)}))
end
return {'ok', int(ms)}
