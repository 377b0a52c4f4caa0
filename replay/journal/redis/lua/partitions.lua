-- Arguments: 'number' and a partition's number, or 'model' and a model.
local numbers, found = {ARGV[2]}, {}
if ARGV[1] == 'model' then
  numbers = redis.call('LRANGE', P .. ':partitions:' .. ARGV[2], 0, -1)
end
for _, number in ipairs(numbers) do
  local of = redis.call(
    'HMGET', P .. ':partition:' .. number, 'model', 'replica', 'spec', 'sealed', 'at', 'sum')
  if of[1] then
    local rows = P .. ':rows:' .. number
    found[#found + 1] =
      {number, of[1], of[2], of[3], int(last(rows)), of[4] or '', int(trimmed(rows)),
        of[5] or '', of[6] or ''}
  end
end
return found
