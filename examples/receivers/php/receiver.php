<?php
// Takes seckill's events: php -S 127.0.0.1:$PORT receiver.php
// (WEBHOOK_SECRETS separated by commas; WEBHOOK_SEEN, a directory for the ids that were handled).
declare(strict_types=1);

const TOLERANCE_S = 300;
const BODY_BYTES_MAX = 4_000_000;

function is_genuine(string $header, string $body): bool
{
    $at = '';
    $marks = [];
    foreach (explode(',', $header) as $part) {
        [$name, $value] = explode('=', $part, 2) + [1 => ''];
        if ($name === 't') $at = $value;
        if ($name === 'v1' && count($marks) < 10) $marks[] = $value;
    }
    if (!preg_match('/\A[0-9]{1,12}\z/', $at) || abs(time() - (int) $at) > TOLERANCE_S) {
        return false;
    }
    $genuine = false; // While a secret is replaced, each side may know two: one match is enough.
    foreach (explode(',', getenv('WEBHOOK_SECRETS')) as $secret) {
        $right = hash_hmac('sha256', "$at.$body", $secret);
        foreach ($marks as $mark) $genuine = hash_equals($right, $mark) || $genuine;
    }
    return $genuine;
}

function handle(array $event): void
{
    file_put_contents('php://stdout', "handled {$event['id']} {$event['kind']}\n");
}

http_response_code(500); // Until it is done: after an error PHP may otherwise answer 200.
$body = (string) file_get_contents('php://input', false, null, 0, BODY_BYTES_MAX);
if (!is_genuine($_SERVER['HTTP_SECKILL_SIGNATURE'] ?? '', $body)) {
    http_response_code(401);
    exit;
}
$event = json_decode($body, true, 32, JSON_THROW_ON_ERROR);
// In your mall: a table with a unique key, written in the same transaction as the work itself.
// The id is the body's: the headers are not signed.
$seen = fopen(getenv('WEBHOOK_SEEN') . '/' . hash('sha256', $event['id']), 'c+');
flock($seen, LOCK_EX);
if (fread($seen, 4) !== 'done') {
    handle($event);
    fwrite($seen, 'done');
}
fclose($seen);
http_response_code(204);
