-- Arguments: model, spec, number, end, seq.  The stream is written last: without it the end is 0, so a
-- script that failed is repeated.
local model, number, stop = ARGV[1], ARGV[3], ARGV[4]
local rows, known = P .. ':rows:' .. number, P .. ':partition:' .. number
if tonumber(redis.call('GET', P .. ':seq') or '0') < tonumber(ARGV[5]) then
  redis.call('SET', P .. ':seq', ARGV[5])
end
if redis.call('EXISTS', rows) == 1 then return 0 end
if redis.call('EXISTS', known) == 1 and redis.call('HGET', known, 'replica') ~= 'lost' then
  return 0
end
local count = math.floor(tonumber(number) / 16777216)
if tonumber(redis.call('GET', P .. ':partitions') or '0') < count then
  redis.call('SET', P .. ':partitions', int(count))
end
if redis.call('EXISTS', known) == 0 then
  redis.call('RPUSH', P .. ':partitions:' .. model, number)
  redis.call('HSET', known,
    'model', model, 'replica', 'lost', 'spec', ARGV[2], 'at', '0', 'sealed', '1')
  prove_partition(number)
end
if tonumber(stop) > 0 then
  redis.call('XADD', rows, stop .. '-0', 'seq', '0')
  redis.call('XDEL', rows, stop .. '-0')
end
return 1
