-- Arguments: model, key.  Returns whether the half matches its checksum; before layout 4 there was none.
local packed = redis.call('HGET', P .. ':halves:' .. ARGV[1], ARGV[2])
if not packed then return 'gone' end
local read, half = pcall(cmsgpack.unpack, packed)
if not read or type(half) ~= 'table' then return 'bad' end
if #half <= 5 then return 'good' end
local sum = table.remove(half, 7)
return sum == proof('half ' .. ARGV[1] .. ' ' .. ARGV[2], half) and 'good' or 'bad'
