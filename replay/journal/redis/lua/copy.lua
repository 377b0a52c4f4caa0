-- Arguments: name of a stream, prefix of an entry's place in its checksum, the id after which this page
-- begins, greatest number of entries, number of (field, value) pairs, these pairs, and the ids of the
-- entries that get these values.  Entries cannot be inserted into or changed in a stream, so it is
-- copied page by page.  The copy replaces the stream in the step that finds nothing more to copy: then
-- it has the entries that were appended meanwhile, and not those that were trimmed.
local source, spare = P .. ':' .. ARGV[1], P .. ':erasing:' .. ARGV[1]
local place, after, most, pairs_n = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local values, wanted = {}, {}
for i = 6, 5 + 2 * pairs_n, 2 do values[ARGV[i]] = ARGV[i + 1] end
for i = 6 + 2 * pairs_n, #ARGV do wanted[ARGV[i]] = true end
if after == '0' then redis.call('DEL', spare)
elseif int(last(spare)) ~= after then return {'moved'} end
local page = redis.call('XRANGE', source, '(' .. after .. '-0', '+', 'COUNT', most)
for _, row in ipairs(page) do
  local id, fields = string.match(row[1], '^%d+'), row[2]
  if wanted[id] then
    local n = #fields
    if fields[n - 1] == 'sum' then
      n = n - 2
      if fields[n + 2] ~= proof(place .. id, {unpack(fields, 1, n)}) then return {'damaged', id} end
    end
    for i = 1, n, 2 do fields[i + 1] = values[fields[i]] or fields[i + 1] end
    if fields[n + 1] then fields[n + 2] = proof(place .. id, {unpack(fields, 1, n)}) end
  end
  redis.call('XADD', spare, row[1], unpack(fields))
  after = id
end
if #page == most then return {'more', after} end
local oldest = redis.call('XRANGE', source, '-', '+', 'COUNT', 1)[1]
if oldest then
  redis.call('XTRIM', spare, 'MINID', oldest[1])
  redis.call('RENAME', spare, source)
else
  redis.call('DEL', spare)
end
return {'done', after}
