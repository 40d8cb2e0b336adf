"""Lets a batch of new usage be posted by one statement that commits by itself."""

from alembic import op

revision = "0005"
down_revision = "0004"

# What the writer believes is compared under the same locks, taken in the same order, as a posting
# in a transaction takes them: balances, then the heads. Whatever is otherwise is answered and
# nothing is written. Runs with the caller's rights, so row-level security binds it like any other
# statement; the tenants are bound first of all.
_POST_USAGE = """
CREATE FUNCTION post_usage(
    tenants text,
    account_tenants text[], account_ids uuid[], balances_before text[], held_before text[],
    changes text[], account_sequences bigint[], has_charges boolean[],
    held_changes text[],
    hold_tenants text[], hold_ids uuid[], remaining_before text[], taken text[],
    head_tenants text[], sizes_before bigint[], hashes_before bytea[], epochs bigint[],
    sizes bigint[], frontiers bytea[], last_hashes bytea[], record_times timestamptz[],
    group_heads int[], debits uuid[], credits uuid[], assets text[], systems text[],
    groups int[], sequences bigint[], kinds smallint[], flags smallint[],
    amounts text[], debit_balances text[],
    occur_times timestamptz[], refs text[], runs uuid[],
    attempts int[], descriptions text[], leaves bytea[], leaf_hashes bytea[],
    payload_hashes bytea[],
    node_tenants text[], node_levels smallint[], node_indexes bigint[], node_hashes bytea[],
    channel text, notification text,
    OUT verdict text, OUT now timestamptz
) LANGUAGE plpgsql AS $$
DECLARE
    found_rows bigint;
BEGIN
    PERFORM set_config('cogni.tenants', tenants, true);
    now := cogni_now();
    verdict := 'MOVED';

    SELECT count(*) INTO found_rows FROM (
        SELECT FROM balances AS b
        JOIN unnest(account_tenants, account_ids, balances_before, held_before, has_charges)
             AS w (tenant_id, account_id, balance, held, is_payer) USING (tenant_id, account_id)
        WHERE w.is_payer AND b.balance = w.balance::numeric AND b.held = w.held::numeric
          AND NOT b.has_budget
        ORDER BY b.tenant_id, b.account_id
        FOR NO KEY UPDATE OF b
    ) AS locked;
    IF found_rows <> (SELECT count(*) FROM unnest(has_charges) AS p (is_payer) WHERE is_payer) THEN
        RETURN;
    END IF;

    IF cardinality(hold_ids) > 0 THEN
        PERFORM FROM holds AS h
        JOIN unnest(hold_tenants, hold_ids) AS w (tenant_id, hold_id) USING (tenant_id, hold_id)
        ORDER BY h.tenant_id, h.hold_id
        FOR NO KEY UPDATE OF h;
        -- One that is not there, or is closed, has nothing to give. None can be placed meanwhile
        -- on an account whose balance is locked.
        IF EXISTS (
            SELECT FROM unnest(hold_tenants, hold_ids, remaining_before)
                AS w (tenant_id, hold_id, remaining)
            WHERE w.remaining::numeric <> coalesce((
                SELECT h.remaining FROM holds AS h
                WHERE h.tenant_id = w.tenant_id AND h.hold_id = w.hold_id AND h.state IN (1, 3)
            ), 0)
        ) THEN
            RETURN;
        END IF;
    END IF;

    SELECT count(*) INTO found_rows FROM (
        SELECT FROM log_heads AS h
        JOIN unnest(head_tenants, sizes_before, hashes_before, epochs, record_times)
             AS w (tenant_id, tree_size, hash, epoch, record_time) USING (tenant_id)
        WHERE h.tree_size = w.tree_size AND h.last_leaf_hash = w.hash AND h.price_epoch = w.epoch
          AND w.record_time BETWEEN post_usage.now - interval '1 second'
                            AND greatest(post_usage.now, h.last_record_time)
        ORDER BY h.tenant_id
        FOR NO KEY UPDATE OF h
    ) AS locked;
    IF found_rows <> cardinality(head_tenants) THEN
        RETURN;
    END IF;

    -- A statement of its own sees what was committed while this one waited for the heads, and
    -- LATERAL with LIMIT is looked up key by key whatever the planner believes.
    IF EXISTS (
        SELECT FROM unnest(groups, refs, kinds) AS w (g, reference, kind)
        CROSS JOIN LATERAL (
            SELECT FROM keys
            WHERE tenant_id = head_tenants[group_heads[w.g]] AND source_system = systems[w.g]
              AND source_reference = w.reference
            LIMIT 1
        ) AS k
        WHERE w.kind = 2
    ) THEN
        verdict := 'KNOWN';
        RETURN;
    END IF;

    INSERT INTO entries (
        tenant_id, sequence, kind, flags, debit_account_id, credit_account_id, asset, amount,
        debit_balance, record_time, occur_time, source_system, source_reference,
        run_id, attempt, description, leaf, leaf_hash)
    SELECT head_tenants[group_heads[e.g]], e.sequence, e.kind, e.flags, debits[e.g], credits[e.g],
           assets[e.g], e.amount::numeric, e.debit_balance::numeric,
           record_times[group_heads[e.g]], e.occur_time, systems[e.g], e.reference, e.run,
           e.attempt, e.description, e.leaf, e.leaf_hash
    FROM unnest(
        groups, sequences, kinds, flags, amounts, debit_balances,
        occur_times, refs, runs, attempts, descriptions, leaves, leaf_hashes)
        AS e (g, sequence, kind, flags, amount, debit_balance,
              occur_time, reference, run, attempt, description, leaf, leaf_hash);

    INSERT INTO keys (tenant_id, source_system, source_reference, payload_hash, sequence)
    SELECT head_tenants[group_heads[e.g]], systems[e.g], e.reference, e.payload_hash, e.sequence
    FROM unnest(groups, refs, payload_hashes, sequences, kinds)
         AS e (g, reference, payload_hash, sequence, kind)
    WHERE e.kind = 2;

    IF cardinality(node_tenants) > 0 THEN
        INSERT INTO log_nodes (tenant_id, level, index, hash)
        SELECT * FROM unnest(node_tenants, node_levels, node_indexes, node_hashes);
    END IF;

    UPDATE holds AS h
    SET remaining = h.remaining - t.amount::numeric, spent = h.spent + t.amount::numeric,
        unsettled = least(h.unsettled, h.remaining - t.amount::numeric),
        update_time = post_usage.now
    FROM unnest(hold_tenants, hold_ids, taken) AS t (tenant_id, hold_id, amount)
    WHERE h.tenant_id = t.tenant_id AND h.hold_id = t.hold_id AND t.amount <> '0';

    UPDATE balances AS b
    SET balance = b.balance + c.change::numeric, held = b.held + c.held_change::numeric,
        sequence = greatest(b.sequence, c.sequence),
        update_time = greatest(b.update_time, h.record_time)
    FROM unnest(account_tenants, account_ids, changes, held_changes, account_sequences)
         AS c (tenant_id, account_id, change, held_change, sequence)
    JOIN unnest(head_tenants, record_times) AS h (tenant_id, record_time) USING (tenant_id)
    WHERE b.tenant_id = c.tenant_id AND b.account_id = c.account_id;

    UPDATE log_heads AS h
    SET tree_size = g.tree_size, frontier = g.frontier, last_leaf_hash = g.hash,
        last_record_time = g.record_time
    FROM unnest(head_tenants, sizes, frontiers, last_hashes, record_times)
         AS g (tenant_id, tree_size, frontier, hash, record_time)
    WHERE h.tenant_id = g.tenant_id;

    PERFORM pg_notify(channel, notification);
    verdict := 'POSTED';
END
$$
"""


def upgrade() -> None:
    """Create the function."""
    op.execute(_POST_USAGE)
