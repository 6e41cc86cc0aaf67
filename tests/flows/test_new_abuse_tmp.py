from pathlib import Path
import pytest, time, os
from tests.flows.test_abuse import *
import tests.flows.test_abuse as T
A=sorted(Path("/tmp/people/abuse").iterdir())
CASES=[pytest.param(a,l,id=f"{a.name}-{l}") for a in A for l in ("extract","splice") if l=="extract" or a.suffix==".zip"]
for n in [n for n in dir() if n.startswith("test_")]: del globals()[n]
@pytest.mark.parametrize(("archive","lane"),CASES)
def test_new(archive,lane,biospex,prefect):
    t=time.time()
    check_harmless(archive,lane,biospex,prefect)
    print("TOOK",archive.name,lane,round(time.time()-t,1))
