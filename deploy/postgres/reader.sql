-- The role `grafana`: it reads what the tenants dashboard shows, and no hash, no password and no text.
-- Run it as the owner of the tables, after the server has made them; running it again changes nothing.
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') THEN CREATE ROLE grafana LOGIN; END IF;
END $$;
GRANT USAGE ON SCHEMA public TO grafana;
GRANT SELECT (id, email, created_at) ON accounts TO grafana;
GRANT SELECT (id, account_id, name, created_at, last_used, revoked_at, requests, prompt_tokens, completion_tokens)
  ON api_keys TO grafana;
GRANT SELECT (account_id, last_used, requests, prompt_tokens, completion_tokens) ON logins TO grafana;
