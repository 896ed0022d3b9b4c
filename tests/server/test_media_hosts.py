"""Which URLs of media may be fetched, and from which addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.media_hosts import ListedResolver, MediaHosts, MediaRefused
from tests.server.resolvers import Answering

HOSTS = MediaHosts.of(["Media.Example", "10.1.2.3", "2001:4860:4860::8888"])


@pytest.mark.parametrize(
    "url",
    [
        "https://media.example/a.png",
        "http://MEDIA.example:8080/a%20b.png",
        "https://media.example/?next=http://elsewhere.example/",
        "http://10.1.2.3/a.png",
    ],
)
def test_a_listed_host_passes(url):
    """In any case, on any port, whatever the path says."""
    assert HOSTS.check(url).raw_host in {"media.example", "10.1.2.3"}


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/a.png",
        "https://sub.media.example/",
        "https://media.example.evil.example/",
        "https://evil.example/media.example",
        "https://media.example./",
        "https://media.example@evil.example/",
        "https://evil.example\\@media.example/",
        "https://media.example\\@evil.example/",
        "https://evil.example#@media.example/",
        "https://user:secret@media.example/",
        "https://evil.example?@media.example/",
        "https://media.example\t.evil.example/",
        "https://media.example /",
        "https://ｍedia.example.evil/",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://017700000001/",
        "http://127.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[2001:4860:4860::8888]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http:///a.png",
        "http://media.example:99999/",
        "http://media.example:0/",
        "//media.example/a.png",
        "media.example/a.png",
        "ftp://media.example/a.png",
        "file:///etc/passwd",
        "gopher://media.example/",
        "",
        "https://",
        "https://[media.example/",
        "https://]media.example[@",
    ],
)
def test_anything_else_is_refused(url):
    """Other hosts however they are written, other schemes, credentials, and what parsers read differently."""
    with pytest.raises(MediaRefused):
        HOSTS.check(url)


@given(st.text(max_size=30))
def test_any_text_is_refused_or_leads_to_a_listed_host(text):
    """Alone, as a whole URL, or behind a listed host: nothing but MediaRefused is raised."""
    for url in (text, f"http://{text}", f"https://media.example{text}", f"https://{text}media.example/"):
        try:
            host = HOSTS.check(url).raw_host
        except MediaRefused:
            continue
        assert host in HOSTS.listed


def test_none_is_listed_by_default():
    """Without a list there is no host, and the refusal names the flag."""
    for hosts in (None, []):
        with pytest.raises(MediaRefused, match="--allowed-media-domains"):
            MediaHosts.of(hosts).check("https://media.example/")


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "10.1.2.3"])
def test_addresses_a_name_may_stand_for(address):
    """Public ones, and what is listed itself."""
    assert HOSTS.admits(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
    ],
)
def test_addresses_no_name_may_stand_for(address):
    """Loopback, private, link-local, shared, multicast, in either family or one within the other."""
    assert not HOSTS.admits(address)


async def test_a_name_with_public_addresses_resolves():
    """As it would without us."""
    resolver = ListedResolver(HOSTS, Answering(["8.8.8.8", "2001:4860:4860::8888"]))
    found = await resolver.resolve("media.example", 443)
    assert [each["host"] for each in found] == ["8.8.8.8", "2001:4860:4860::8888"]


@pytest.mark.parametrize("found", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"]])
async def test_a_name_with_another_address_does_not(found):
    """One among several is enough: a client would try it in its turn."""
    with pytest.raises(MediaRefused, match="not public"):
        await ListedResolver(HOSTS, Answering(found)).resolve("media.example", 443)
