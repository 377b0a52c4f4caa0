"""The steps of :class:`replay.journal.redis.RedisJournal` as Lua: one script, one atomic step.

Lua is no transaction: what a script wrote before an error stays.  So each script reads and
refuses first and writes last, a stream's entry always before the key that leads to it.  (Only
``order`` comes before: a place there counts if the row that stands there says the same ``seq``.)
A key without its entry would answer "duplicate" for a row that is nowhere.  The server refuses
writes for want of memory or disk only at a script's first write, and has a script's effects in the
append-only file as one MULTI … EXEC, which it drops whole if it is torn.

Keys, ``P`` being ``KEYS[1]``, the journal's prefix in braces; all of them are in one slot:

=========================== =========== ========================================================
``P:format``                string      number of this layout
``P:seq``                   string      commit order of the whole journal: counts rows
``P:partitions``            string      counts partitions
``P:changes``               string      counts changes of epochs
``P:partition:NUMBER``      hash        model, replica, spec, at; sealed if it is
``P:partitions:MODEL``      list        numbers, in the order in which they were given
``P:rows:NUMBER``           stream      a row under the id ``OFFSET-0``
``P:order:MODEL``           stream      where each row stands, under the id ``SEQ-0``
``P:trimmed:MODEL``         string      seq of the newest row that was trimmed
``P:claims:NUMBER``         hash        how many learners claimed each offset, and its checksum
``P:running:MODEL``         string      milliseconds for which servers have run, and its checksum
``P:ids:MODEL``             hash        ``NUMBER:OFFSET`` of each key
``P:halves:MODEL``          hash        the half that is kept of each key (cmsgpack)
``P:waiting:MODEL``         sorted set  keys of halves by when they were taken
``P:head:MODEL``            hash        ``epoch:SPEC``, ``snapshot:SPEC``, ``newest`` epoch
``P:lineages:MODEL``        sorted set  specs by their last change of epoch
``P:controls:MODEL``        stream      a control row under the id ``SEQ-0``
``P:decided:MODEL``         hash        seq of each control row's key
``P:lines``                 stream      a line of the log of decisions under the id ``NUMBER-0``
``P:anchor``                hash        the line that stands for those that were trimmed
``P:erasing:rows:NUMBER``   stream      a copy that grows while payloads are removed
=========================== =========== ========================================================

A partition's end is its stream's last id, kept nowhere else: it outlives trimming, and it is gone
with the stream, so that a journal that lost a stream is seen to be behind.  Likewise what was
trimmed is what is missing before its first entry, so that trimming only deletes, which a server
without memory still does.  Rows that a layout before 4 has joined say which half came second
(``half``) and when the first was taken (``since``).

Rows, control rows, halves, partitions and heads end with ``sum``: the first 32 bits of the SHA-1
of where they stand and of all that is before it (:func:`replay.journal.redisproof.proof`).  A
server's Lua has no faster checksum, and only a script knows offset and seq.  ``ran`` is the running
time at which a row or a half was written.
"""

from __future__ import annotations

COMMON = """
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
  return string.sub(redis.sha1hex(place .. '\\n' .. table.concat(words, '\\n')), 1, 8)
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
"""

# ARGV: layout of the caller.  Keeps the newest one, so that older versions refuse what they
# could not read; answers what is there then.
SET_FORMAT = (
    COMMON
    + """
local found = tonumber(redis.call('GET', P .. ':format') or '0')
if found >= tonumber(ARGV[1]) then return found end
redis.call('SET', P .. ':format', ARGV[1])
return tonumber(ARGV[1])
"""
)

# ARGV: number, known, '1' if new rows are held, most halves of the model, newest epoch that the
# writer has seen, then of each row its key, event_id, source, verdict, factor, payload, at, half
# ('' of a whole row), payload of the half that it takes the place of ('': of any, or of none), last
# control row known and kinds that must not have come since, key that no row must have ('': any).
APPEND = (
    COMMON
    + """
local number, known, held, most = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local of = redis.call('HMGET', P .. ':partition:' .. number,
  'model', 'sealed', 'replica', 'spec', 'at', 'sum')
local rows = P .. ':rows:' .. number
local stop = last(rows)
if not of[1] and not of[3] then return {'unknown'} end
if of[6] and of[6] ~= proof('partition ' .. number,
    {of[1] or '', of[3] or '', of[4] or '', of[5] or '', of[2] or ''}) then return {'damaged'} end
if of[2] then return {'sealed', int(stop)} end
if stop < known then return {'behind', number, int(stop), int(known)} end
local newest = redis.call('HGET', P .. ':head:' .. of[1], 'newest') or '0'
if tonumber(newest) < tonumber(ARGV[5]) then return {'older', of[1], newest} end
local ids, halves = P .. ':ids:' .. of[1], P .. ':halves:' .. of[1]
local waiting = P .. ':waiting:' .. of[1]
local count = redis.call('HLEN', halves)
local any, ran = count > 0, int(running(of[1]) or 0)
local outcomes, first, fresh, kept, touched = {}, {}, {}, {}, {}

local function half_of(key)
  if kept[key] == nil then
    local packed = any and redis.call('HGET', halves, key)
    local read, found = true, false
    if packed then read, found = pcall(cmsgpack.unpack, packed) end
    if type(found) ~= 'table' then read = read and found == false end
    if read and found and #found > 5 then
      local sum = table.remove(found, 7)
      read = sum == proof('half ' .. of[1] .. ' ' .. key, found)
    end
    if read then kept[key] = found else kept[key] = 'damaged' end
  end
  return kept[key]
end
local function holds(since, absent)
  local there = absent ~= '' and (first[absent] or redis.call('HEXISTS', ids, absent) == 1)
  if there or since == '' then return not there end
  local from = int(tonumber(string.match(since, '^%d+')) + 1) .. '-0'
  for _, control in ipairs(redis.call('XRANGE', P .. ':controls:' .. of[1], from, '+')) do
    if string.find(since, ' ' .. field(control[2], 'kind') .. ' ', 1, true) then return false end
  end
  return true
end
local function take(i, n)
  local key, payload, half, over = ARGV[i], ARGV[i + 5], ARGV[i + 7], ARGV[i + 8]
  if not holds(ARGV[i + 9], ARGV[i + 10]) then return {'gone'} end
  local had = half_of(key)
  if had == 'damaged' then return {'damaged'} end
  if not had and over ~= '' then
    if payload == '' then return {'half', ARGV[i + 6]} end
    return {'gone'}
  end
  if had and (half ~= '' or over ~= '') and over ~= had[4] then
    if had[1] == half and had[4] == payload then return {'half', had[5]} end
    return {'met', had[1], had[2], had[3], had[4], had[5]}
  end
  if half ~= '' and not had and count >= most then return {'half', ''} end
  if had then count = count - 1 end
  if touched[key] == nil then touched[key] = had end
  if half == '' then
    kept[key] = false
    fresh[#fresh + 1] = {n = n, key = key, fields = {'key', key, 'event_id', ARGV[i + 1],
      'source', ARGV[i + 2], 'verdict', ARGV[i + 3], 'factor', ARGV[i + 4], 'payload', payload,
      'at', ARGV[i + 6], 'half', '', 'ran', ran}}
    first[key] = n
    return {'written'}
  end
  kept[key] = payload ~= '' and {half, ARGV[i + 1], ARGV[i + 2], payload, ARGV[i + 6], ran}
  if payload ~= '' then count = count + 1 end
  return {'half', ARGV[i + 6]}
end

for i = 6, #ARGV, 11 do
  local key, n, half = ARGV[i], #outcomes + 1, ARGV[i + 7]
  local place = not first[key] and redis.call('HGET', ids, key)
  if first[key] then
    outcomes[n] = {'twice', first[key]}
  elseif place then
    local where, offset = string.match(place, '^(%d+):(%d+)$')
    local stored = entry(P .. ':rows:' .. where, offset)
    if not stored then return {'behind', where, int(last(P .. ':rows:' .. where)), offset} end
    local own = half == '' and where == number and tonumber(offset) > known
    if field(stored, 'key') == key then
      outcomes[n] = {own and 'own' or 'other', where, offset, stored}
    else
      outcomes[n] = {'damaged', where, offset}
    end
    if half == '' then first[key] = n end
  else
    outcomes[n] = take(i, n)
  end
end
if held and next(touched) ~= nil then return {'held'} end
for _, new in ipairs(fresh) do
  stop = stop + 1
  local seq = int(redis.call('INCR', P .. ':seq'))
  redis.call('XADD', P .. ':order:' .. of[1], seq .. '-0', 'at', number .. ':' .. int(stop))
  table.insert(new.fields, 1, 'seq')
  table.insert(new.fields, 2, seq)
  local sum = proof('row ' .. number .. ' ' .. int(stop), new.fields)
  new.fields[#new.fields + 1], new.fields[#new.fields + 2] = 'sum', sum
  redis.call('XADD', rows, int(stop) .. '-0', unpack(new.fields))
  redis.call('HSET', ids, new.key, number .. ':' .. int(stop))
  outcomes[new.n] = {'written', int(stop), seq}
end
for key, had in pairs(touched) do
  local half = kept[key]
  if half then
    redis.call('ZADD', waiting, half[5], key)
    half[7] = proof('half ' .. of[1] .. ' ' .. key, half)
    redis.call('HSET', halves, key, cmsgpack.pack(half))
  elseif had then
    redis.call('HDEL', halves, key)
    redis.call('ZREM', waiting, key)
  end
end
return {'ok', int(stop), newest, outcomes}
"""
)

# ARGV: model, replica, spec, at, 24 random bits.  The count makes numbers grow and keeps them
# apart; the random bits keep a number from being given again by a server that lost its count,
# where the clock of the old partition would call the new one's rows repeats.  Below 2^53 for the
# first 2^29 partitions, so that each number is exact also where only doubles are known.
REGISTER = (
    COMMON
    + """
local number = int(redis.call('INCR', P .. ':partitions') * 16777216 + tonumber(ARGV[5]))
redis.call('HSET', P .. ':partition:' .. number,
  'model', ARGV[1], 'replica', ARGV[2], 'spec', ARGV[3], 'at', ARGV[4])
prove_partition(number)
redis.call('RPUSH', P .. ':partitions:' .. ARGV[1], number)
return number
"""
)

# ARGV: model, spec, number, end, seq.  The stream comes last: without it the end would be 0, so a
# script that failed is given again.
REGISTER_LOST = (
    COMMON
    + """
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
"""
)

# ARGV: number.
SEAL = (
    COMMON
    + """
local partition = P .. ':partition:' .. ARGV[1]
if redis.call('EXISTS', partition) == 0 then return {'unknown'} end
redis.call('HSET', partition, 'sealed', '1')
prove_partition(ARGV[1])
return {'ok', int(last(P .. ':rows:' .. ARGV[1]))}
"""
)

# ARGV: 'number' and a partition's number, or 'model' and a model.
PARTITIONS = (
    COMMON
    + """
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
"""
)

# ARGV: model, seq after which, most rows.
FOLLOW = (
    COMMON
    + """
local newest, found = redis.call('GET', P .. ':seq') or '0', {}
local page = redis.call(
  'XRANGE', P .. ':order:' .. ARGV[1], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])
for _, place in ipairs(page) do
  local where, offset = string.match(place[2][2], '^(%d+):(%d+)$')
  local stored = entry(P .. ':rows:' .. where, offset)
  if stored and field(stored, 'seq') == string.match(place[1], '^%d+') then
    found[#found + 1] = {where, offset, stored}
  end
end
if #page == tonumber(ARGV[3]) then newest = string.match(page[#page][1], '^%d+') end
return {newest, found, #page, redis.call('GET', P .. ':trimmed:' .. ARGV[1]) or '0'}
"""
)

# ARGV: model, key.
FIND = (
    COMMON
    + """
local place = redis.call('HGET', P .. ':ids:' .. ARGV[1], ARGV[2])
if not place then return {} end
local where, offset = string.match(place, '^(%d+):(%d+)$')
local stored = entry(P .. ':rows:' .. where, offset)
return stored and {where, offset, stored} or {}
"""
)

# ARGV: number, offset, 1 to count one more.
CLAIM = (
    COMMON
    + """
if redis.call('EXISTS', P .. ':partition:' .. ARGV[1]) == 0 then return {'unknown'} end
local claims = P .. ':claims:' .. ARGV[1]
local place = 'claim ' .. ARGV[1] .. ' ' .. ARGV[2]
local n, sum = string.match(redis.call('HGET', claims, ARGV[2]) or '', '^(%d+) ?(%x*)$')
if not n or (sum ~= '' and sum ~= proof(place, {n})) then n = '0' end
local after = int(tonumber(n) + 1)
local more = after .. ' ' .. proof(place, {after})
if ARGV[3] == '1' then redis.call('HSET', claims, ARGV[2], more) end
return {'ok', n}
"""
)

# ARGV: model, spec, epoch, milliseconds.
RUN = (
    COMMON
    + """
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
"""
)

# ARGV: model, spec, epoch, before, most rows, when a clock was ahead, running time, then of each
# partition its number and the last offset that may go.  Ids go first: a key that leads to no entry
# would never be written again.
TRIM = (
    COMMON
    + """
local model, before, left = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local ahead, ran = tonumber(ARGV[6]), tonumber(ARGV[7])
local function is_old(fields)
  local at = tonumber(field(fields, 'at'))
  return (at < before or at > ahead) and tonumber(field(fields, 'ran') or '0') < ran
end
local function is_good(number, id, fields)
  if fields[#fields - 1] ~= 'sum' then return field(fields, 'ran') == nil end
  local words = {unpack(fields, 1, #fields - 2)}
  return fields[#fields] == proof('row ' .. number .. ' ' .. string.match(id, '^%d+'), words)
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
      if good then  -- when a damaged one was taken is not to be believed: a later one decides
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
"""
)

# ARGV: model, before, most halves, when a clock was ahead, running time.
EXPIRE = (
    COMMON
    + """
local waiting = P .. ':waiting:' .. ARGV[1]
local halves, most, ran = P .. ':halves:' .. ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[5])
local function written(key)
  local packed = redis.call('HGET', halves, key)
  local read, half = pcall(cmsgpack.unpack, packed or '')
  return read and half and tonumber(half[6]) or 0
end
local removed = 0
for _, range in ipairs({{'-inf', '(' .. ARGV[2]}, {'(' .. ARGV[4], '+inf'}}) do
  local keys = redis.call(
    'ZRANGEBYSCORE', waiting, range[1], range[2], 'LIMIT', 0, int(most - removed))
  for _, key in ipairs(keys) do
    if written(key) < ran then
      redis.call('HDEL', halves, key)
      redis.call('ZREM', waiting, key)
      removed = removed + 1
    end
  end
end
return int(removed)
"""
)

# ARGV: number, offset after which, most rows.  Each row with where its id and its seq lead to.
LOOK = (
    COMMON
    + """
local model, found = redis.call('HGET', P .. ':partition:' .. ARGV[1], 'model') or '', {}
for _, row in ipairs(redis.call(
    'XRANGE', P .. ':rows:' .. ARGV[1], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])) do
  local key, seq = field(row[2], 'key') or '', field(row[2], 'seq') or ''
  local order = string.match(seq, '^%d+$') and entry(P .. ':order:' .. model, seq) or {}
  found[#found + 1] = {row[1], row[2], redis.call('HGET', P .. ':ids:' .. model, key) or '',
    field(order, 'at') or ''}
end
return found
"""
)

# ARGV: model, key.  Whether the half is as it was written; one of a layout before 4 is.
HALF = (
    COMMON
    + """
local packed = redis.call('HGET', P .. ':halves:' .. ARGV[1], ARGV[2])
if not packed then return 'gone' end
local read, half = pcall(cmsgpack.unpack, packed)
if not read or type(half) ~= 'table' then return 'bad' end
if #half <= 5 then return 'good' end
local sum = table.remove(half, 7)
return sum == proof('half ' .. ARGV[1] .. ' ' .. ARGV[2], half) and 'good' or 'bad'
"""
)

# ARGV: model.
RUNNING = COMMON + "return running(ARGV[1]) and 1 or 0"
