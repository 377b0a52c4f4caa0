"""The steps of :class:`replay.journal.redis.RedisJournal` as Lua: one script, one atomic step.

Lua is no transaction: what a script wrote before an error stays.  So each script reads and
refuses first and writes last, a stream's entry always before the key that leads to it.  (A key
without its entry would answer "duplicate" for a row that is nowhere.)  The server refuses writes
for want of memory or disk only at a script's first write, and has a script's effects in the
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
``P:ids:MODEL``             hash        ``NUMBER:OFFSET`` of each key
``P:head:MODEL``            hash        ``epoch:SPEC``, ``snapshot:SPEC``, ``newest`` epoch
``P:lineages:MODEL``        sorted set  specs by their last change of epoch
``P:controls:MODEL``        stream      a control row under the id ``SEQ-0``
``P:decided:MODEL``         hash        seq of each control row's key
=========================== =========== ========================================================

A partition's end is its stream's last id, kept nowhere else: it outlives trimming, and it is gone
with the stream, so that a journal that lost a stream is seen to be behind.
"""

from __future__ import annotations

_COMMON = """
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
"""

# ARGV: number, known, '1' if new rows are held, then of each row its key, event_id, source,
# verdict, factor, payload, at.
APPEND = (
    _COMMON
    + """
local number, known, held = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local of = redis.call('HMGET', P .. ':partition:' .. number, 'model', 'sealed')
local rows = P .. ':rows:' .. number
local stop = last(rows)
if not of[1] then return {'unknown'} end
if of[2] then return {'sealed', int(stop)} end
if stop < known then return {'behind', number, int(stop), int(known)} end
local ids = P .. ':ids:' .. of[1]
local outcomes, first, fresh = {}, {}, {}
for i = 4, #ARGV, 7 do
  local key, n = ARGV[i], #outcomes + 1
  local place = redis.call('HGET', ids, key)
  if first[key] then
    outcomes[n] = {'twice', first[key]}
  elseif place then
    local where, offset = string.match(place, '^(%d+):(%d+)$')
    local stored = entry(P .. ':rows:' .. where, offset)
    if not stored then return {'behind', where, int(last(P .. ':rows:' .. where)), offset} end
    local own = where == number and tonumber(offset) > known
    outcomes[n] = {own and 'own' or 'other', where, offset, stored}
  else
    fresh[#fresh + 1] = n
  end
  if not place then outcomes[n] = outcomes[n] or {'written'} end
  first[key] = first[key] or n
end
if held and #fresh > 0 then return {'held'} end
for _, n in ipairs(fresh) do
  local i = 4 + (n - 1) * 7
  stop = stop + 1
  local seq = int(redis.call('INCR', P .. ':seq'))
  redis.call('XADD', rows, int(stop) .. '-0', 'seq', seq, 'key', ARGV[i],
    'event_id', ARGV[i + 1], 'source', ARGV[i + 2], 'verdict', ARGV[i + 3],
    'factor', ARGV[i + 4], 'payload', ARGV[i + 5], 'at', ARGV[i + 6])
  redis.call('HSET', ids, ARGV[i], number .. ':' .. int(stop))
  outcomes[n] = {'written', int(stop), seq}
end
local newest = redis.call('HGET', P .. ':head:' .. of[1], 'newest') or '0'
return {'ok', int(stop), newest, outcomes}
"""
)

# ARGV: model, replica, spec, at, 24 random bits.  The count makes numbers grow and keeps them
# apart; the random bits keep a number from being given again by a server that lost its count,
# where the clock of the old partition would call the new one's rows repeats.  Below 2^53 for the
# first 2^29 partitions, so that each number is exact also where only doubles are known.
REGISTER = (
    _COMMON
    + """
local number = int(redis.call('INCR', P .. ':partitions') * 16777216 + tonumber(ARGV[5]))
redis.call('HSET', P .. ':partition:' .. number,
  'model', ARGV[1], 'replica', ARGV[2], 'spec', ARGV[3], 'at', ARGV[4])
redis.call('RPUSH', P .. ':partitions:' .. ARGV[1], number)
return number
"""
)

# ARGV: number.
SEAL = (
    _COMMON
    + """
local partition = P .. ':partition:' .. ARGV[1]
if redis.call('EXISTS', partition) == 0 then return {'unknown'} end
redis.call('HSET', partition, 'sealed', '1')
return {'ok', int(last(P .. ':rows:' .. ARGV[1]))}
"""
)

# ARGV: 'number' and a partition's number, or 'model' and a model.
PARTITIONS = (
    _COMMON
    + """
local numbers, found = {ARGV[2]}, {}
if ARGV[1] == 'model' then
  numbers = redis.call('LRANGE', P .. ':partitions:' .. ARGV[2], 0, -1)
end
for _, number in ipairs(numbers) do
  local of = redis.call(
    'HMGET', P .. ':partition:' .. number, 'model', 'replica', 'spec', 'sealed')
  if of[1] then
    local stop = int(last(P .. ':rows:' .. number))
    found[#found + 1] = {number, of[1], of[2], of[3], stop, of[4] or '0'}
  end
end
return found
"""
)

# ARGV: model, key.
FIND = (
    _COMMON
    + """
local place = redis.call('HGET', P .. ':ids:' .. ARGV[1], ARGV[2])
if not place then return {} end
local where, offset = string.match(place, '^(%d+):(%d+)$')
local stored = entry(P .. ':rows:' .. where, offset)
return stored and {where, offset, stored} or {}
"""
)

# ARGV: model, spec, expected epoch.
BEGIN_EPOCH = (
    _COMMON
    + """
local head = P .. ':head:' .. ARGV[1]
local found = redis.call('HMGET', head, 'epoch:' .. ARGV[2], 'newest')
local epoch = tonumber(found[1] or '0')
if epoch ~= tonumber(ARGV[3]) then return {'lost', int(epoch)} end
epoch = epoch + 1
local newest = math.max(epoch, tonumber(found[2] or '0'))
local changes = int(redis.call('INCR', P .. ':changes'))
redis.call('ZADD', P .. ':lineages:' .. ARGV[1], changes, ARGV[2])
redis.call('HSET', head, 'epoch:' .. ARGV[2], int(epoch), 'newest', int(newest))
return {'ok', int(epoch)}
"""
)

# ARGV: model, spec, epoch, snapshot.
MOVE_HEAD = (
    _COMMON
    + """
local head = P .. ':head:' .. ARGV[1]
local epoch = redis.call('HGET', head, 'epoch:' .. ARGV[2])
if epoch ~= ARGV[3] then return {'lost', epoch or '0'} end
redis.call('HSET', head, 'snapshot:' .. ARGV[2], ARGV[4])
return {'ok', epoch}
"""
)

# ARGV: model, kind, key, payload.
WRITE_CONTROL = (
    _COMMON
    + """
local controls, decided = P .. ':controls:' .. ARGV[1], P .. ':decided:' .. ARGV[1]
local seq, won = redis.call('HGET', decided, ARGV[3]), '0'
if not seq then
  seq, won = int(last(controls) + 1), '1'
  redis.call('XADD', controls, seq .. '-0', 'kind', ARGV[2], 'key', ARGV[3], 'payload', ARGV[4])
  redis.call('HSET', decided, ARGV[3], seq)
end
local row = entry(controls, seq)
if not row then return redis.error_reply('LOST control row ' .. seq .. ' of the model') end
return {won, seq, row}
"""
)
