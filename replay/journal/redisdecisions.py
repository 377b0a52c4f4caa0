"""The steps of the Redis journal that decide, as Lua: epochs, heads, control rows, their log.

Keys and rules are those of :mod:`replay.journal.redisscripts`.
"""

from __future__ import annotations

from replay.journal.redisscripts import COMMON

# ARGV: model, spec, expected epoch.
BEGIN_EPOCH = (
    COMMON
    + """
local head = P .. ':head:' .. ARGV[1]
if not head_is_good(ARGV[1], ARGV[2]) then return {'damaged', '0'} end
local found = redis.call('HMGET', head, 'epoch:' .. ARGV[2], 'newest')
local epoch = tonumber(found[1] or '0')
if epoch ~= tonumber(ARGV[3]) then return {'lost', int(epoch)} end
epoch = epoch + 1
local newest = math.max(epoch, tonumber(found[2] or '0'))
local changes = int(redis.call('INCR', P .. ':changes'))
redis.call('ZADD', P .. ':lineages:' .. ARGV[1], changes, ARGV[2])
redis.call('HSET', head, 'epoch:' .. ARGV[2], int(epoch), 'newest', int(newest))
prove_head(ARGV[1], ARGV[2])
return {'ok', int(epoch)}
"""
)

# ARGV: model, spec, epoch, snapshot.
MOVE_HEAD = (
    COMMON
    + """
local epoch = epoch_of(ARGV[1], ARGV[2])
if not head_is_good(ARGV[1], ARGV[2]) then return {'damaged', '0'} end
if epoch ~= ARGV[3] then return {'lost', epoch or '0'} end
redis.call('HSET', P .. ':head:' .. ARGV[1], 'snapshot:' .. ARGV[2], ARGV[4])
prove_head(ARGV[1], ARGV[2])
return {'ok', epoch}
"""
)

_LINES = """
local lines, anchor = P .. ':lines', P .. ':anchor'
local function newest_line()
  return math.max(last(lines), tonumber(redis.call('HGET', anchor, 'number') or '0'))
end
local function write_line(number, text)
  redis.call('XADD', lines, number .. '-0', 'text', text, 'sum', proof('line ' .. number,
    {'text', text}))
end
"""

# ARGV: number, text.
WRITE_LINE = (
    COMMON
    + _LINES
    + """
local newest = newest_line()
if tonumber(ARGV[1]) ~= newest + 1 then return {'taken', int(newest)} end
write_line(ARGV[1], ARGV[2])
return {'ok', ARGV[1]}
"""
)

# ARGV: number, text, checksum.  The anchor is written before what it stands for goes.
TRIM_LINES = (
    COMMON
    + _LINES
    + """
local newest = newest_line()
if tonumber(ARGV[1]) > newest then return {'taken', int(newest)} end
if ARGV[1] == redis.call('HGET', anchor, 'number') then return {'taken', int(newest)} end
redis.call('HSET', anchor, 'number', ARGV[1], 'text', ARGV[2], 'sum', ARGV[3])
redis.call('XTRIM', lines, 'MINID', int(tonumber(ARGV[1]) + 1) .. '-0')
return {'ok', ARGV[1]}
"""
)

# ARGV: model, kind, key, payload, of a fence spec and epoch, and of a line number and text ('').
WRITE_CONTROL = (
    COMMON
    + _LINES
    + """
if ARGV[6] ~= '' then
  local epoch = epoch_of(ARGV[1], ARGV[5])
  if epoch ~= ARGV[6] then return {'lost', epoch or '0'} end
end
local controls, decided = P .. ':controls:' .. ARGV[1], P .. ':decided:' .. ARGV[1]
local seq, won = redis.call('HGET', decided, ARGV[3]), '0'
if not seq then
  if ARGV[7] ~= '' then
    local newest = newest_line()
    if tonumber(ARGV[7]) ~= newest + 1 then return {'taken', int(newest)} end
    write_line(ARGV[7], ARGV[8])
  end
  seq, won = int(last(controls) + 1), '1'
  local fields = {'kind', ARGV[2], 'key', ARGV[3], 'payload', ARGV[4]}
  fields[8] = proof('control ' .. ARGV[1] .. ' ' .. seq, fields)
  fields[7] = 'sum'
  redis.call('XADD', controls, seq .. '-0', unpack(fields))
  redis.call('HSET', decided, ARGV[3], seq)
end
local row = entry(controls, seq)
if not row then return redis.error_reply('LOST control row ' .. seq .. ' of the model') end
return {won, seq, row}
"""
)
