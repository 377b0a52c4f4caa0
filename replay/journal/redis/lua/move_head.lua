-- Arguments: model, spec, epoch, snapshot.
local epoch = epoch_of(ARGV[1], ARGV[2])
if not head_is_good(ARGV[1], ARGV[2]) then return {'damaged', '0'} end
if epoch ~= ARGV[3] then return {'lost', epoch or '0'} end
redis.call('HSET', P .. ':head:' .. ARGV[1], 'snapshot:' .. ARGV[2], ARGV[4])
prove_head(ARGV[1], ARGV[2])
return {'ok', epoch}
