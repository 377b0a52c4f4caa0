-- Arguments: partition number, offset, 1 to add a claim (0: only count them).
if redis.call('EXISTS', P .. ':partition:' .. ARGV[1]) == 0 then return {'unknown'} end
local claims = P .. ':claims:' .. ARGV[1]
local place = 'claim ' .. ARGV[1] .. ' ' .. ARGV[2]
local n, sum = string.match(redis.call('HGET', claims, ARGV[2]) or '', '^(%d+) ?(%x*)$')
if not n or (sum ~= '' and sum ~= proof(place, {n})) then n = '0' end
local after = int(tonumber(n) + 1)
local more = after .. ' ' .. proof(place, {after})
if ARGV[3] == '1' then redis.call('HSET', claims, ARGV[2], more) end
return {'ok', n}
