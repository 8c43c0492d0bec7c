-- Prove that the server runs scripts and accepts writes. Nothing is stored: the log does not exist.
-- KEYS[1] a name that nothing uses.
redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', 'probe', '')
return redis.status_reply('OK')
