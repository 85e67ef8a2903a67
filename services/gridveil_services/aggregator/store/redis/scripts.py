"""The Lua scripts. Each touches one slot, and reads and checks all it needs before it writes.

Lua in Redis has no rollback: a write that failed would leave the earlier ones in place. Without
flags a script is refused as a whole when memory is full. Numbers cross as text, because Lua has
only doubles. The answers are lists that begin with a word.
"""

from __future__ import annotations

_HEAD = "#!lua\n"
_READ_ONLY = "#!lua flags=no-writes\n"

PROBE = _HEAD + "return 1"
"""Nothing, refused like every script that writes: without memory, replicas or a disk."""

OPEN_LANE = (
    _HEAD
    + """
-- KEYS: lane, journal, partials. ARGV: parameters, capacity, first digest
local lane = redis.call('HMGET', KEYS[1], 'count', 'sealed', 'parameters', 'capacity')
if not lane[1] then
  if redis.call('EXISTS', unpack(KEYS)) > 0 then return {'lost'} end
elseif lane[1] ~= '0' or lane[2] ~= '0' then
  return {'held'}
end
redis.call('HSET', KEYS[1], 'count', '0', 'sealed', '0', 'parameters', ARGV[1],
  'capacity', ARGV[2], 'digest', ARGV[3])
return {'done'}
"""
)
"""Mark a lane as opened, or put one without a report under other parameters."""

OPEN_WINDOW = (
    _HEAD
    + """
-- KEYS: window. ARGV: facts, phase, lineage, why it is poisoned or ''
local held = redis.call('HMGET', KEYS[1], 'facts', 'phase')
if held[1] and held[2] then return {'held', held[1], held[2]} end
redis.call('HSET', KEYS[1], 'facts', ARGV[1], 'phase', ARGV[2], 'fence', '0', 'sealed', '0',
  'lineage', ARGV[3], 'why', ARGV[4])
return {'done'}
"""
)
"""Make a window known; the first facts stand."""

MOVE_WINDOW = (
    _HEAD
    + """
-- KEYS: window. ARGV: facts, phase it must have, facts it must have, fencing epoch
local held = redis.call('HMGET', KEYS[1], 'phase', 'facts', 'fence')
if held[1] == ARGV[2] and held[2] == ARGV[1] and held[3] == ARGV[4] then return {'done'} end
if held[1] ~= ARGV[2] or held[2] ~= ARGV[3] or held[3] ~= ARGV[4] then return {'other'} end
redis.call('HSET', KEYS[1], 'facts', ARGV[1])
return {'done'}
"""
)
"""Change the facts of a window, if nobody began to seal, move or take it over after this epoch."""

COMMIT = (
    _HEAD
    + """
-- KEYS: lane, journal, partials, receipts... ARGV: writer, sequence number, the one before,
-- parameters, partial sum, and one after the other of each report: number of the key that its
-- receipt goes to (2 bytes), receipt (40), element (204)
local lane = redis.call('HMGET', KEYS[1], 'sealed', 'parameters', 'count', 'capacity', 'digest')
for i = 1, 5 do
  if not lane[i] then return {'lost'} end
end
local last = redis.call('HGET', KEYS[3], 's:' .. ARGV[1]) or '0'
if last == ARGV[2] then
  if redis.call('HGET', KEYS[3], 'p:' .. ARGV[1]) == ARGV[5] then return {'stored'} end
  return {'stale'}
end
if last ~= ARGV[3] then
  if tonumber(last) < tonumber(ARGV[3]) then return {'lost'} end
  return {'stale'}
end
if lane[1] ~= '0' then return {'sealed'} end
if lane[2] ~= ARGV[4] then return {'moved'} end
local count = tonumber(lane[3])
if redis.call('LLEN', KEYS[2]) ~= count then return {'lost'} end
local reports, known, new = ARGV[6], {}, #ARGV[6] / 246
for at = 1, #reports, 246 do
  local high, low = string.byte(reports, at, at + 1)
  local meter = string.sub(reports, at + 42, at + 57)
  local receipt = redis.call('HGET', KEYS[high * 256 + low], meter)
  if receipt then
    known[#known + 1] = meter
    known[#known + 1] = receipt
  end
end
if #known > 0 or count + new > tonumber(lane[4]) then return {'refused', lane[3], known} end
local digest, elements = lane[5], {}
for at = 1, #reports, 246 do
  local high, low = string.byte(reports, at, at + 1)
  local meter = string.sub(reports, at + 42, at + 57)
  redis.call('HSET', KEYS[high * 256 + low], meter, string.sub(reports, at + 2, at + 41))
  elements[#elements + 1] = string.sub(reports, at + 42, at + 245)
  digest = redis.sha1hex(digest .. string.sub(reports, at + 2, at + 245))
end
redis.call('RPUSH', KEYS[2], unpack(elements))
redis.call('HSET', KEYS[3], 's:' .. ARGV[1], ARGV[2], 'p:' .. ARGV[1], ARGV[5])
redis.call('HSET', KEYS[1], 'count', string.format('%d', count + new), 'digest', digest)
return {'stored'}
"""
)
"""Store reports of a lane, the writer's running sum, count and digest together or not at all."""

CONFIRM = (
    _HEAD
    + """
-- KEYS: lane. A write that changes nothing, for WAIT to wait for.
local count = redis.call('HGET', KEYS[1], 'count')
if not count then return {'lost'} end
redis.call('HSET', KEYS[1], 'count', count)
return {'done'}
"""
)

FENCE = (
    _HEAD
    + """
-- KEYS: window. ARGV: phase it must have
local held = redis.call('HMGET', KEYS[1], 'phase', 'fence')
if not held[1] or not held[2] then return {'lost'} end
if held[1] ~= ARGV[1] then return {'other', held[1]} end
return {'done', string.format('%d', redis.call('HINCRBY', KEYS[1], 'fence', 1))}
"""
)
"""The next fencing epoch of a window that is to be sealed."""

SEAL_LANE = (
    _HEAD
    + """
-- KEYS: lane, partials. ARGV: fencing epoch; then pairs of a writer and what it had acknowledged
local sealed = redis.call('HGET', KEYS[1], 'sealed')
if not sealed then return {'lost'} end
for i = 2, #ARGV, 2 do
  local last = redis.call('HGET', KEYS[2], 's:' .. ARGV[i]) or '0'
  if tonumber(last) < tonumber(ARGV[i + 1]) then return {'lost'} end
end
if tonumber(sealed) > tonumber(ARGV[1]) then return {'stale'} end
redis.call('HSET', KEYS[1], 'sealed', ARGV[1])
return {'done'}
"""
)
"""Close a lane for ever. A newer epoch's seal stands."""

SEAL_WINDOW = (
    _HEAD
    + """
-- KEYS: window. ARGV: phase it must have, phase to come, fencing epoch
local held = redis.call('HMGET', KEYS[1], 'phase', 'fence', 'sealed')
if not held[1] or not held[2] or not held[3] then return {'lost'} end
if held[1] == ARGV[2] and held[3] == ARGV[3] then return {'done'} end
if held[1] ~= ARGV[1] or held[2] ~= ARGV[3] then return {'other', held[1]} end
redis.call('HSET', KEYS[1], 'phase', ARGV[2], 'sealed', ARGV[3])
return {'done'}
"""
)
"""The window is sealed, if nobody began to seal it after this epoch."""

SETTLE = (
    _HEAD
    + """
-- KEYS: window. ARGV: facts, final phase, token of this call, why, then phases it may have
local held = redis.call('HMGET', KEYS[1], 'phase', 'settled')
if held[2] == ARGV[3] then return {'done'} end
local may = false
for i = 5, #ARGV do
  may = may or (held[1] or '') == ARGV[i]
end
if not may then return {'other', held[1] or ''} end
redis.call('HSET', KEYS[1], 'facts', ARGV[1], 'phase', ARGV[2], 'settled', ARGV[3], 'why', ARGV[4])
return {'done'}
"""
)
"""Compare-and-set to a final phase. '' among the phases stands for a record that is gone."""

FORGET = (
    _HEAD
    + """
-- KEYS: forgotten, windows. ARGV: start, then starts of windows
local held = redis.call('GET', KEYS[1]) or '0'
if tonumber(held) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
for i = 2, #ARGV do
  redis.call('SREM', KEYS[2], ARGV[i])
end
return {'done'}
"""
)
"""Windows that start up to here never open again."""

JOIN = (
    _HEAD
    + """
-- KEYS: window. ARGV: name, then phases it may have
local phase = redis.call('HGET', KEYS[1], 'phase')
if not phase then return {'lost'} end
for i = 2, #ARGV do
  if phase == ARGV[i] then
    redis.call('HSET', KEYS[1], 'r:' .. ARGV[1], '1')
    return {'done'}
  end
end
return {'other', phase}
"""
)
"""An aggregator is about to acknowledge reports of a window."""

INQUIRE = (
    _HEAD
    + """
-- KEYS: window. ARGV: name, phase it must have, token
if redis.call('HGET', KEYS[1], 'phase') ~= ARGV[2] then return {'other'} end
redis.call('HSET', KEYS[1], 'i:' .. ARGV[1], ARGV[3])
return {'done'}
"""
)
"""An aggregator that was away asks the others whether the window was sealed before."""

ANSWER = (
    _HEAD
    + """
-- KEYS: window. ARGV: who asked, phase it must have, token, who answers
if redis.call('HGET', KEYS[1], 'phase') ~= ARGV[2] then return {'other'} end
if redis.call('HGET', KEYS[1], 'i:' .. ARGV[1]) ~= ARGV[3] then return {'other'} end
redis.call('HSET', KEYS[1], 'o:' .. ARGV[1] .. ':' .. ARGV[4], ARGV[3])
return {'done'}
"""
)
"""As far as this aggregator's file says, it was not."""

VOUCH = (
    _HEAD
    + """
-- KEYS: window. ARGV: name, phase it must have, fencing epoch, digest of what was sealed
local held = redis.call('HMGET', KEYS[1], 'phase', 'sealed')
if held[1] ~= ARGV[2] or held[2] ~= ARGV[3] then return {'other'} end
redis.call('HSET', KEYS[1], 'v:' .. ARGV[1], ARGV[4])
return {'done'}
"""
)
"""An aggregator has found all that it acknowledged in what was sealed."""

LEAD = (
    _HEAD
    + """
-- KEYS: leader, clocks. ARGV: name, milliseconds, metering time, milliseconds that a clock is
-- kept, run, when this run told its time last or 0
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held = redis.call('GET', KEYS[1])
local clocks = redis.call('HGETALL', KEYS[2])
local own = redis.call('HGET', KEYS[2], ARGV[1]) or ''
local run, at = string.match(own, ' (%S+) (%d+)$')
if run and run ~= ARGV[5] and ARGV[6] ~= '0' and tonumber(at) > tonumber(ARGV[6]) then
  return {'copied'}
end
local word = 'done'
if held and held ~= ARGV[1] then
  word = 'other'
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
local stamp = string.format('%.0f', now)
for i = 1, #clocks, 2 do
  local told = tonumber(string.match(clocks[i + 1], ' (%d+)$') or '0')
  if now - told > tonumber(ARGV[4]) then redis.call('HDEL', KEYS[2], clocks[i]) end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3] .. ' ' .. ARGV[5] .. ' ' .. stamp)
return {word, stamp, clocks}
"""
)
"""Lead, or go on leading, for some time, and tell the own clock; the others' are answered."""

RESIGN = (
    _HEAD
    + """
-- KEYS: leader. ARGV: name
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', KEYS[1]) end
return {'done'}
"""
)

SERVERS = (
    _HEAD
    + """
-- KEYS: servers. ARGV: format, lineage, now in seconds
local held = redis.call('HMGET', KEYS[1], 'format', 'lineage', 'since')
if held[1] and held[1] ~= ARGV[1] then return {'other', held[1]} end
if held[2] == ARGV[2] and held[3] then return {'done', held[3]} end
redis.call('HSET', KEYS[1], 'format', ARGV[1], 'lineage', ARGV[2], 'since', ARGV[3])
return {'done', ARGV[3]}
"""
)
"""Since when the servers have been the same, without a restart or failover."""

KNOWN = (
    _READ_ONLY
    + """
-- KEYS: for each meter the hash it is in. ARGV: the meters
local found = {}
for i = 1, #ARGV do
  local receipt = redis.call('HGET', KEYS[i], ARGV[i])
  if receipt then
    found[#found + 1] = ARGV[i]
    found[#found + 1] = receipt
  end
end
return found
"""
)
"""Meters and their receipts, as far as they are there."""
