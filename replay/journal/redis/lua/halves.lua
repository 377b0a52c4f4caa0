-- Arguments: model, cursor, approximate number of halves.
local page, found = redis.call('HSCAN', P .. ':halves:' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3]), {}
for i = 1, #page[2], 2 do
  local read, half = pcall(cmsgpack.unpack, page[2][i + 1])
  if not read or type(half) ~= 'table' then half = {} end
  found[#found + 1] =
    {page[2][i], half[1] or '', half[2] or '', half[3] or '', half[4] or '', half[5] or ''}
end
return {page[1], found}
