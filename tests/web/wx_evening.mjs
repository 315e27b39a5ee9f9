// The evening of the test, in the same module as the guide's code: it begins where that ends, with the answer
// to its order. `shown` is what this page was fed, `login` how often it was sent to log in.
const say = (name, value) => console.log(JSON.stringify([name, value]));
const until = async (what, true_) => {
  for (let tries = 0; !true_(); tries++) {
    if (tries > 6000) throw new Error(`no ${what} after a minute`);
    await new Promise(resolve => setTimeout(resolve, 10));
  }
};
say('bought', [status, body.code, body.order.state]);
const order = body.order.id, line = [{ sku: 'rice-wuchang-5kg', quantity: 1 }];
await until('stock', () => shown.at(-1) === STOCK - 1);
say('fed', shown.at(-1));

// The network breaks with two questions under way, which may have been decided or not, and another is asked
// while there is none: all are answered, on another socket.
const first = tasks.at(-1), until_cut = shown.length, answers = [sale.ask('buy', { key: 'cart-82', items: line }), sale.ask('begin-payment', { order })];
first.cut();
answers.push(sale.ask('result', { order }));
const [again, begun, seen] = await Promise.all(answers);
say('again', [['created', 'exists'].includes(again.body.code), ['done', 'already'].includes(begun.body.code), seen.status]);
say('sockets', tasks.length);
say('one order a key', (await sale.ask('buy', { key: 'cart-82', items: line })).body.order.id === again.body.order.id);

// The new socket feeds the stock as the first did: both units that are held, and the one that comes back.
await until('stock on the new socket', () => shown.slice(until_cut).includes(STOCK - 2));
await sale.ask('release', { order: again.body.order.id });
await until('stock that came back', () => shown.at(-1) === STOCK - 1);
say('fed again', shown.at(-1));

const paid = await fetch(`${HOST}/v1/sales/${SALE}/orders/${order}/confirm`, {
  method: 'POST', headers: { Authorization: `Bearer ${KEY}`, 'Content-Type': 'application/json' }, body: '{"payment": "wx-1"}',
});
say('paid', (await paid.json()).code);
say('result', (await sale.ask('result', { order })).body.state);
say('unanswered', Object.keys(sale.asked).length);

// Closed by the page itself: it stays away.
const open = tasks.length;
sale.task.close();
await until('end', () => !sale.task.socket);
await new Promise(resolve => setTimeout(resolve, 700));
say('stays away', tasks.length === open);

// A user token that is none: the page is told to log in, and does not come back by itself.
const stranger = new Sale(SALE, 'nobody');
let asked = 0;
stranger.onLogin = () => { asked++; };
stranger.open();
await until('login', () => asked === 1);
const tried = tasks.length;
await new Promise(resolve => setTimeout(resolve, 700));
say('login', [asked, tasks.length === tried]);
process.exit(0);
