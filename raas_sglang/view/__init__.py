"""`python -m raas_sglang view`: a page that shows which tokens each request still holds."""
