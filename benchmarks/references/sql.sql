-- A flash sale in PostgreSQL alone: a conditional UPDATE of the stock, and an order with a unique key.
-- One call of reserve() is one statement, so one round trip, and a transaction of its own.

CREATE TABLE sales (
    sale            text PRIMARY KEY,
    state           text NOT NULL,
    opens_ms        bigint NOT NULL,
    ends_ms         bigint NOT NULL,
    hold_ms         bigint NOT NULL,
    limit_per_order integer NOT NULL,
    limit_per_buyer integer NOT NULL
);

-- The one row that everybody wants. Its new versions stay in its own page, which is nearly empty.
CREATE TABLE stock (
    sale            text,
    sku             text,
    limit_per_buyer integer NOT NULL,
    available       bigint NOT NULL CHECK (available >= 0),
    held            bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (sale, sku)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- Units of a buyer; of the whole sale under the SKU ''.
CREATE TABLE buyers (
    sale  text,
    buyer text,
    sku   text,
    units integer NOT NULL,
    PRIMARY KEY (sale, buyer, sku)
) WITH (fillfactor = 50);

CREATE TABLE orders (
    id          text NOT NULL,
    sale        text,
    buyer       text,
    key         text,
    state       text NOT NULL,
    sku         text NOT NULL,
    quantity    integer NOT NULL,
    attrs       text NOT NULL,
    deadline_ms bigint NOT NULL,
    PRIMARY KEY (sale, buyer, key)
);
-- For whoever gives back what was not paid.
CREATE INDEX orders_due ON orders (sale, deadline_ms) WHERE state = 'held';

-- The code of the answer, and the deadline of the order if there is one. What is refused is read
-- first and costs no write; what writes takes the row of the stock last, for whoever has it holds up
-- all others until his commit is on disk. What was true when it was read may no longer be true when it
-- is written: then it raises, and nothing was written.
CREATE FUNCTION reserve(
    p_id text, p_sale text, p_buyer text, p_key text, p_sku text, p_quantity integer, p_attrs text,
    p_not_after_ms bigint, OUT code text, OUT due_ms bigint
) LANGUAGE plpgsql AS $$
DECLARE
    now_ms  bigint := extract(epoch FROM clock_timestamp()) * 1000;
    known   orders;
    terms   sales;
    shelf   stock;
    units   integer;
BEGIN
    SELECT * INTO known FROM orders
        WHERE sale = p_sale AND buyer = p_buyer AND key = p_key;
    IF FOUND THEN
        code := 'conflict';
        IF known.sku = p_sku AND known.quantity = p_quantity AND known.attrs = p_attrs THEN
            code := 'exists';
            due_ms := known.deadline_ms;
        END IF;
        RETURN;
    END IF;

    SELECT * INTO terms FROM sales WHERE sale = p_sale;
    code := CASE
        WHEN NOT FOUND THEN 'unknown_sale'
        WHEN terms.state = 'paused' THEN 'paused'
        WHEN terms.state = 'created' OR now_ms < terms.opens_ms THEN 'not_open'
        WHEN terms.state <> 'open' OR now_ms >= terms.ends_ms THEN 'ended'
        WHEN p_not_after_ms < now_ms THEN 'too_late'
    END;
    IF code IS NOT NULL THEN RETURN; END IF;

    SELECT * INTO shelf FROM stock WHERE sale = p_sale AND sku = p_sku;
    code := CASE
        WHEN NOT FOUND THEN 'unknown_sku'
        WHEN terms.limit_per_order > 0 AND p_quantity > terms.limit_per_order THEN 'order_limit'
    END;
    IF code IS NOT NULL THEN RETURN; END IF;

    IF shelf.limit_per_buyer > 0 THEN
        SELECT b.units INTO units FROM buyers b
            WHERE b.sale = p_sale AND b.buyer = p_buyer AND b.sku = p_sku;
        IF coalesce(units, 0) + p_quantity > shelf.limit_per_buyer THEN
            code := 'sku_limit';
            RETURN;
        END IF;
    END IF;
    IF terms.limit_per_buyer > 0 THEN
        SELECT b.units INTO units FROM buyers b
            WHERE b.sale = p_sale AND b.buyer = p_buyer AND b.sku = '';
        IF coalesce(units, 0) + p_quantity > terms.limit_per_buyer THEN
            code := 'buyer_limit';
            RETURN;
        END IF;
    END IF;
    IF shelf.available < p_quantity THEN
        code := CASE WHEN shelf.available = 0 THEN 'sold_out' ELSE 'insufficient' END;
        RETURN;
    END IF;

    -- The buyer's rows, before the order's: two orders of one buyer wait for one another here.
    INSERT INTO buyers AS b VALUES (p_sale, p_buyer, p_sku, p_quantity)
        ON CONFLICT (sale, buyer, sku) DO UPDATE SET units = b.units + p_quantity
        RETURNING b.units INTO units;
    IF shelf.limit_per_buyer > 0 AND units > shelf.limit_per_buyer THEN
        RAISE EXCEPTION USING ERRCODE = 'SK001', MESSAGE = 'sku_limit';
    END IF;
    INSERT INTO buyers AS b VALUES (p_sale, p_buyer, '', p_quantity)
        ON CONFLICT (sale, buyer, sku) DO UPDATE SET units = b.units + p_quantity
        RETURNING b.units INTO units;
    IF terms.limit_per_buyer > 0 AND units > terms.limit_per_buyer THEN
        RAISE EXCEPTION USING ERRCODE = 'SK001', MESSAGE = 'buyer_limit';
    END IF;

    due_ms := now_ms + terms.hold_ms;
    -- The identical order, sent twice at once, fails here with 23505 and is asked again.
    INSERT INTO orders
        VALUES (p_id, p_sale, p_buyer, p_key, 'held', p_sku, p_quantity, p_attrs, due_ms);
    UPDATE stock SET available = available - p_quantity, held = held + p_quantity
        WHERE sale = p_sale AND sku = p_sku AND available >= p_quantity;
    IF NOT FOUND THEN
        -- Somebody was faster, and what is left is read anew.
        RAISE EXCEPTION USING ERRCODE = 'SK002', MESSAGE = 'gone';
    END IF;
    code := 'created';
END $$;
