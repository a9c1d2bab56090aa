"""What keeps a record private: exact noise, one release for each request, clipped training, and the account
of it all.
"""
