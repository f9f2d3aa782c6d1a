"""Whatever a line is about, it shows no user, password or token."""

import pytest

from oodflow.errors import UserError, without_secrets

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        f"http://bob:{SECRET}@host:5000/prefix",
        f"no store at postgresql+psycopg2://bob:{SECRET}@[::1]:5432/name (refused)",
        f"'ftp://{SECRET}@host/path'",
        f"https://bob:a@b/{SECRET}@host/",
        f"https://bob:a%40{SECRET}@host/",
        f"mysql://host/db?user=x&password={SECRET}&ssl=1",
        f"postgresql://host/db?sslpassword={SECRET}",
        f"https://x.blob.core.windows.net/c?sv=1&sig={SECRET}",
        f"s3://bucket?X-Amz-Signature={SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET} is wrong",
        f'{{"token": "{SECRET}", "a": 1}}',
        f"dsn host=h user=u password='{SECRET}' dbname=d",
        f"Authorization: Basic {SECRET}",
        f"headers {{'Authorization': 'Bearer {SECRET}'}}",
    ],
)
def test_a_secret_is_taken_out_and_the_rest_stays(text):
    shown = without_secrets(text)
    assert SECRET not in shown and "bob" not in shown
    assert without_secrets(shown) == shown
    assert SECRET not in str(UserError(text))


@pytest.mark.parametrize(
    "text",
    [
        "use it: oodflow detect models:/oodflow-detector@champion PATH",
        "mlflow ui --backend-store-uri sqlite:////home/a@b/mlflow.db",
        "see http://127.0.0.1:5000/#/experiments/1/runs/2",
        "folder:/data/a@b?resize=32&crop=32",
        "the database refuses these credentials: password authentication failed",
        "train --lr 1e-3 --seeds 1,2",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text):
    assert without_secrets(text) == text
